"""The examples of the documentation, and examples/describe_image.py."""

import re
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
from helpers.processes import ROOT, run_here, run_script

import model
from datasets.layouts import list_images
from examples.demo import checked_flags
from model import weights
from model.images import rgb_pixels

pytestmark = pytest.mark.slow
SIZE = ["--resize", 56, 56]
IMAGE = "my images/place 0/view 0.jpg"


@pytest.fixture
def images(tiny_benchmark, tmp_path):
    """A folder of images of a user: the tiny benchmark's database in subfolders, without positions in the names."""
    folder = tmp_path / "my images"
    for i, path in enumerate(list_images(tiny_benchmark / "tiny" / "images" / "test" / "database")):
        (folder / f"place {i // 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"place {i // 2}" / f"view {i % 2}.jpg")
    return folder


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("float", {"descriptor": (3, 512)}),
        ("hashing", {"code": (3, 512)}),
        ("two_branch", {"descriptor": (3, 512), "code": (3, 512)}),
    ],
)
def test_describe_image(images, checkpoints, tmp_path, mode, parts):
    first, same, other = images / "place 0/view 0.jpg", images / "place 0/view 1.jpg", images / "place 5/view 0.jpg"
    flags = ["--model", checkpoints[mode], *SIZE, "--output=features.npz"]
    result = run_script("examples.describe_image", first, same, other, *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    with np.load(tmp_path / "features.npz") as features:
        assert {name: features[name].shape for name in features if name != "paths"} == parts
        for name in parts:
            values = features[name].astype(float)
            assert values[0] @ values[1] > values[0] @ values[2]  # more similar to its own place
        if "descriptor" in parts:
            similarities = [
                float(text) for text in re.findall(r"cosine similarity (\S+)", result.stdout.replace(",", ""))
            ]
            assert similarities == pytest.approx(features["descriptor"][1:] @ features["descriptor"][0], abs=1e-3)
        if "code" in parts:
            bits = [int(text) for text in re.findall(r"(\d+) of 512 bits differ", result.stdout)]
            assert bits == [(features["code"][0] != code).sum() for code in features["code"][1:]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.jpg"], ["no.jpg", "no such file"]),
        ([IMAGE, "--model=resnet"], ["resnet", "SelaVPRplusplus_base"]),
        (["empty"], ["empty", "folder"]),
        ([IMAGE, "--resize", 50, 50], ["50 x 50", "14"]),
    ],
)
def test_bad_input(images, checkpoints, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    result = run_here(
        "examples.describe_image", *arguments[:1], "--model", checkpoints["float"], *SIZE, *arguments[1:], cwd=tmp_path
    )
    assert result.status == 2 and "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_the_demo_trains_on_corridors_for_real_photos_only(tmp_path):
    result = run_script("examples.demo", "--indoors", cwd=tmp_path)
    assert result.status == 2 and "--indoors needs --real_photos" in result.stderr
    assert not list(tmp_path.iterdir())


def examples_of(page):
    """The Python examples of a page, one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))


def test_the_python_example_of_the_readme(images, checkpoints, tmp_path, monkeypatch):
    for i, name in enumerate(("street.jpg", "square.jpg", "station.jpg", "where_is_this.jpg")):
        shutil.copy(images / f"place {i % 3}/view 0.jpg", tmp_path / name)
    load, loaded = torch.hub.load, []

    def load_local(*arguments):
        loaded.append(arguments)
        return load(str(ROOT), arguments[1], checkpoints["two_branch"], resize=(56, 56), source="local")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "load", load_local)
    namespace: dict = {}
    exec(examples_of("README.md"), namespace)
    assert loaded == [("OWNER/SelaVPRplusplus", "PlaceRecognizer", "SelaVPRplusplus_base_rerank")]
    match = namespace["match"]
    assert (match.id, match.name) == (0, str(tmp_path / "street.jpg")) and match.distance == pytest.approx(0, abs=1e-6)


def test_the_python_examples_for_programs(images, checkpoints, monkeypatch, tmp_path):
    frames = [rgb_pixels(path) for path in list_images(images)]
    drive = [(frame, (500_000 + 10 * i, 0)) for i, frame in enumerate(frames)]
    namespace = {"drive": drive, "images": torch.zeros(2, 3, 56, 70), "new_frame": frames[-1]}
    monkeypatch.setitem(sys.modules, "selavprplusplus", model)
    load = partial(weights.load_any_model, checkpoints["two_branch"])
    monkeypatch.setattr("model.recognizer.load_any_model", lambda name: load())
    monkeypatch.setattr("model.weights.load_any_model", lambda name: load())
    model.PlaceRecognizer(checkpoints["two_branch"], resize=(56, 56)).save(tmp_path / "index")
    code = examples_of("docs/embedding.md").replace('device="cuda", precision="fp16"', "resize=(56, 56)")
    code = code.replace("/data/my_index", str(tmp_path / "index")).replace("street.jpg", str(list_images(images)[0]))
    exec(code, namespace)
    assert namespace["place"] == drive[-1][1] and len(namespace["recognizer"]) == 1
    assert len(model.PlaceRecognizer.open(tmp_path / "index")) == 1
    assert namespace["code"].shape == (2, 512) and namespace["descriptor"].shape == (2, 512)


def test_the_demo_hands_on_a_tolerance_of_no_frame(tmp_path):
    """It replaces the distance, as other tolerances do."""
    for folder in ("db", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s_001.jpg").touch()
    given = [f"--database_folder={tmp_path}/db", f"--queries_folder={tmp_path}/new", "--frame_tolerance=0"]
    flags = checked_flags(given)
    assert float(flags[flags.index("--frame_tolerance") + 1]) == 0
    assert "--val_positive_dist_threshold" not in flags and "--no_labels" not in flags


def test_the_demo_checks_the_flags_for_real_photos_before_it_draws(tiny_benchmark, tmp_path):
    """They are those of evaluations, which get them with absolute paths."""
    real = ["--real_photos", tiny_benchmark, "tiny"]
    refused = {
        ("--queries_subfolder", "queries_rain"): "No folder .*queries_rain",
        ("--matches_csv=none.csv",): "--matches_csv: no file none.csv",
        ("--frame_tolerance=2", "--no_labels"): "leaves no recalls",
        ("--rerank_nums=2",): "unrecognized arguments: --rerank_nums=2",
    }
    for flags, message in refused.items():
        result = run_script("examples.demo", *real, *flags, cwd=tmp_path)
        assert result.status == 2 and re.search(message, result.stderr), result.stderr
    assert list(tmp_path.iterdir()) == []
