"""Naming a model, and the size of images that it, or an index, states: forgetting --resize changes nothing."""

import json
import sys

import pytest
import torch
from helpers.evaluations import expect_refusal
from helpers.models import MODES, build, filled
from helpers.processes import run_script

from model import ImageConfig, ModelChoice, ModelConfig
from model.weights import model_content
from model.zoo import MODEL_ZOO
from utils.cli.evaluation import FloatEvaluation, TwoBranchEvaluation
from utils.cli.export import SafetensorsExport
from utils.cli.search import BuildIndexArguments
from utils.runtime.parser import parse

NAMED = ("--resize", 56, 70, "--no_antialias")
SCRIPTS = {
    "eval.py": (FloatEvaluation, ["--datasets_folder=data"]),
    "eval_rerank.py": (TwoBranchEvaluation, ["--datasets_folder=data"]),
    "build_index.py": (BuildIndexArguments, ["images", "--index=index"]),
    "export.py": (SafetensorsExport, ["--output=new"]),
}


def model_of(monkeypatch, script, *flags):
    """The model that a command line names. The script ends with status 2 if it names none."""
    settings, required = SCRIPTS[script]
    monkeypatch.setattr(sys, "argv", [script, *required, *flags])
    return parse(settings, None).model


@pytest.mark.parametrize(
    ("script", "flags", "expected"),
    [
        ("build_index.py", [], "SelaVPRplusplus_base_rerank"),
        ("build_index.py", ["--pretrained"], "SelaVPRplusplus_base_rerank"),
        ("build_index.py", ["--backbone=dinov2-large", "--hashing", "--rerank"], "SelaVPRplusplus_large_rerank"),
        ("export.py", ["--pretrained", "--backbone=dinov2-base"], "SelaVPRplusplus_base"),
        ("export.py", ["--model=SelaVPRplusplus_large"], "SelaVPRplusplus_large"),
        ("eval.py", ["--pretrained"], "SelaVPRplusplus_large"),
        ("eval.py", ["--model=SelaVPRplusplus_base", "--aggregation=gem"], "SelaVPRplusplus_base"),
        ("eval_rerank.py", ["--pretrained", "--backbone=dinov2-base"], "SelaVPRplusplus_base_rerank"),
    ],
)
def test_a_published_model_is_named_or_described(monkeypatch, script, flags, expected):
    model = model_of(monkeypatch, script, *flags)
    (entry,) = [entry for entry in MODEL_ZOO if entry.name == expected]
    assert model.source is entry and model.label == expected and model.file is None
    assert model.choice.resolve() == entry.config


@pytest.mark.parametrize("flag", ["--model", "--resume"])
def test_a_file_is_named_and_recognised(monkeypatch, flag):
    model = model_of(monkeypatch, "export.py", f"{flag}=runs/best_model.pth")
    assert model.label == str(model.file) == str(model.source) == "runs/best_model.pth"
    assert model.choice == ModelChoice()
    assert model_of(monkeypatch, "eval.py", f"{flag}=a.pth").choice.resolve() == ModelConfig()


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("eval.py", [], "Give one model, with --model NAME_OR_FILE: SelaVPRplusplus_base, "),
        ("eval.py", ["--backbone=vit-tiny"], "Give one model"),
        ("eval.py", ["--model=a.pth", "--pretrained"], "Give one model"),
        ("build_index.py", ["--model=a.pth", "--resume=b.pth"], "Give one model"),
        ("eval.py", ["--model=SelaVPRplusplus_bse"], "Did you mean SelaVPRplusplus_base?"),
        (
            "eval.py",
            ["--model=SelaVPRplusplus_base_rerank"],
            "--model SelaVPRplusplus_base_rerank does not apply to eval.py; use eval_rerank.py.",
        ),
        (
            "export.py",
            ["--model=SelaVPRplusplus_base", "--hashing", "--rerank"],
            "SelaVPRplusplus_base is --backbone=dinov2-base --aggregation=gem, and other flags state another model",
        ),
        ("build_index.py", ["--backbone=vit-tiny"], "No weights are published for vit-tiny gem float"),
        ("build_index.py", ["--model=nowhere.pth"], "--model: no file nowhere.pth."),
    ],
)
def test_names_that_are_refused(monkeypatch, capsys, script, flags, words):
    with pytest.raises(SystemExit) as refused:
        model_of(monkeypatch, script, *flags)
    assert refused.value.code == 2 and words in capsys.readouterr().err


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a two-branch model: stated.pth and .safetensors state the size of its images, silent.pth does not,
    as the authors' checkpoints.
    """
    folder = tmp_path_factory.mktemp("models")
    model = filled(build("vit-tiny", **MODES["two_branch"]))
    torch.save(model_content(model), folder / "silent.pth")
    model.image_config = ImageConfig(resize=(56, 70), antialias=False)
    torch.save(model_content(model), folder / "stated.pth")
    return folder


def evaluate(models, datasets, cwd, *flags, model="stated.pth"):
    """(predictions.csv, the script's standard error, flags in results.json) of an evaluation."""
    common = [f"--datasets_folder={datasets}", "--dataset_name=tiny", "--num_workers=0", "--device=cpu", "--no_report"]
    result = run_script("eval_rerank.py", *common, f"--model={models / model}", *flags, cwd=cwd)
    assert result.status == 0, result.stderr
    newest = max((cwd / "logs" / "eval").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    arguments = json.loads((newest / "results.json").read_text())["arguments"]
    assert arguments["model"] == str(models / model)
    return (newest / "predictions.csv").read_bytes(), result.stderr, arguments


def test_forgetting_the_size_gives_the_same_predictions(models, tiny_benchmark, tmp_path):
    """Of a checkpoint, a safetensors file and an index; another size is warned about, once."""
    safetensors = models / "stated.safetensors"
    named, errors, _ = evaluate(models, tiny_benchmark, tmp_path, *NAMED, model="silent.pth")
    assert "resized" not in errors
    forgotten, errors, arguments = evaluate(models, tiny_benchmark, tmp_path, "--save_index=index")
    assert forgotten == named and "resized" not in errors
    assert (arguments["resize"], arguments["no_antialias"]) == ([56, 70], True)
    loaded, errors, arguments = evaluate(models, tiny_benchmark, tmp_path, "--load_index=index", model="silent.pth")
    assert loaded == named and "resized" not in errors and arguments["resize"] == [56, 70]
    warning = "Images are resized to 70 x 56 without antialiasing. The model, or the index, states 56 x 70 without "
    other, errors, arguments = evaluate(models, tiny_benchmark, tmp_path, "--resize", 70, 56)
    assert other != named and errors.count(warning) == 1 and arguments["resize"] == [70, 56]
    pytest.importorskip("safetensors")
    flags = [f"--model={models / 'stated.pth'}", f"--output={safetensors}"]
    result = run_script("export.py", "safetensors", *flags, cwd=tmp_path)
    assert result.status == 0 and "--backbone=vit-tiny --aggregation=gem --hashing --rerank" in result.stdout
    assert evaluate(models, tiny_benchmark, tmp_path, model=safetensors.name)[0] == named


def test_an_index_is_built_and_searched_at_the_size_of_its_model(models, tiny_benchmark, tmp_path):
    images = tiny_benchmark / "tiny" / "images" / "test"
    flags = ["--index=index", "--num_workers=0", "--device=cpu"]
    build = ["build_index.py", images / "database", *flags, f"--model={models / 'stated.pth'}"]
    result = run_script(*build, cwd=tmp_path)
    assert result.status == 0 and "images of 56 x 70 without antialiasing" in result.stdout, result.stderr
    metadata = json.loads((tmp_path / "index" / "metadata.json").read_text())
    assert (metadata["resize"], metadata["antialias"]) == ([56, 70], False)
    silent = [*build[:-1], f"--model={models / 'silent.pth'}", "--append"]  # the index states the size
    result = run_script(*silent, cwd=tmp_path)
    assert result.status == 0 and "holds 16 images" in result.stdout, result.stderr
    found = run_script("search.py", images / "queries", "--index=index", "--json", "--device=cpu", cwd=tmp_path)
    assert found.status == 0 and json.loads(found.stdout)["model"]["resize"] == [56, 70], found.stderr
    both = [f"--model={models / 'stated.pth'}", f"--resume={models / 'stated.pth'}"]
    result = run_script("search.py", images / "queries", "--index=index", *both, cwd=tmp_path)
    assert result.status == 2 and "--model names the model. Give either that or --resume." in result.stderr


def test_a_file_that_does_not_exist(models, tiny_benchmark, tmp_path):
    flags = [f"--datasets_folder={tiny_benchmark}", "--dataset_name=tiny", "--model=SelaVPRplusplus_base.pth"]
    expect_refusal(run_script("eval.py", *flags, cwd=tmp_path), tmp_path, "No checkpoint at SelaVPRplusplus_base.pth")
