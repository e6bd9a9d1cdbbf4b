"""The three training scripts on a tiny synthetic city: what they leave, stopping and resuming, bad input."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import time

import pytest
import torch
from helpers.evaluations import SIZE
from helpers.indexes import content
from helpers.models import MODES, build, reference_model
from helpers.processes import run_here, run_script, start_script
from helpers.trainings import best_model, flags_for, load, metrics_of, outcome, run_well, same, the_folder
from PIL import Image

from datasets.benchmark import Benchmark
from datasets.layouts import BenchmarkConfig
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import extract
from utils.training import validation

pytestmark = pytest.mark.slow

PLACES, IMAGES, BATCHES = 26, 104, 6  # of the fixture city, and batches of 4 places
FILES = (
    ".lock best_model.pth calibration.json curves.png last_model.pth log.txt metrics.csv predictions.csv report.html "
    "results.json"
)
BINARY = ("backbone.adapters_hashing.", "aggregation_hashing.", "linear3.", "linear4.")
BRANCHES = {
    "train.py": {"hashing": False, "rerank": False},
    "train_hashing.py": {"hashing": True, "rerank": False},
    "train_rerank.py": {"hashing": True, "rerank": True},
}


@pytest.fixture(scope="module")
def stages(city, foundation, tmp_path_factory):
    """One run of each script, by name: (printed lines, run folder)."""

    def run(script, *flags):
        return run_well(script, flags_for(city, *flags), tmp_path_factory.mktemp("stage"))

    first = run("train.py", "--train_backbone")
    rerank = [f"--init_from={first[1] / 'best_model.pth'}", "--hashing", "--rerank", "--rerank_num=3"]
    hashing = run("train_hashing.py", f"--foundation_model_path={foundation}", "--val_datasets", "none")
    return {"train.py": first, "train_hashing.py": hashing, "train_rerank.py": run("train_rerank.py", *rerank)}


@pytest.mark.parametrize("script", ["train.py", "train_hashing.py", "train_rerank.py"])
def test_what_a_run_leaves(stages, script):
    lines, folder = stages[script]
    assert sorted(path.name for path in folder.iterdir()) == FILES.split()
    results = json.loads((folder / "results.json").read_text())
    assert lines[-1] == ", ".join(f"R@{n}: {value:.1f}" for n, value in results["recalls"].items())
    assert re.fullmatch(r"R@1: [\d.]+, R@5: [\d.]+, R@10: [\d.]+, R@100: [\d.]+", lines[-1])
    assert any(f"{PLACES} places, {IMAGES} images, {BATCHES} batches" in line for line in lines)
    assert any(
        re.search(r"Parameters: [\d.]+ M, of which [\d.]+ M trainable; backbone 5\.\d+ M", line) for line in lines
    )
    rows = metrics_of(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"] and [row["step"] for row in rows] == [
        str(BATCHES),
        str(2 * BATCHES),
    ]
    for row in rows:
        assert {"multi_similarity", "constraint", "learning_rate", "unreadable_images"} < row.keys()
        assert float(row["loss"]) > 0 and 0 < float(row["mined_pair_fraction"]) <= 1
        assert float(row["seconds"]) > 0 and float(row["peak_memory_mb"]) > 50
        assert float(row["loss"]) == pytest.approx(float(row["multi_similarity"]) + 0.1 * float(row["constraint"]))
        assert (float(row["constraint"]) > 0) == (script != "train.py")
        recalls = [key for key in row if "_R@" in key]
        names = {"train.py": [""], "train_hashing.py": [], "train_rerank.py": ["", "first_stage_"]}[script]
        assert recalls == [f"synthetic_{name}R@{n}" for name in names for n in (1, 5, 10)]
    with Image.open(folder / "curves.png") as picture:
        assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(2**24)) > 10
    assert not list(folder.parents[2].rglob("*.tmp"))


@pytest.mark.parametrize(
    ("script", "evaluation"),
    [
        ("train.py", "eval.py"),
        ("train_hashing.py", "eval_hashing.py"),
        ("train_rerank.py", "eval_rerank.py"),
    ],
)
def test_the_best_model_states_what_it_is_and_evaluates_to_the_same(stages, city, tmp_path, script, evaluation):
    folder = stages[script][1]
    best, last = load(folder / "best_model.pth"), load(folder / "last_model.pth")
    assert best.keys() == {"model_config", "image_config", "model_state_dict"}
    assert best["image_config"] == last["image_config"] == {"resize": (56, 56), "antialias": True}
    assert best["model_state_dict"].keys() == last["model_state_dict"].keys()
    config = {"backbone": "vit-tiny", "aggregation": "gem", **BRANCHES[script]}
    assert best["model_config"] == last["model_config"] == config
    more = ["--rerank_num=3"] if script == "train_rerank.py" else []
    flags = [
        f"--datasets_folder={city}",
        "--dataset_name=synthetic",
        "--num_workers=0",
        "--device=cpu",
        f"--model={folder / 'best_model.pth'}",
    ]
    lines, evaluated = run_well(evaluation, [*flags, *more], tmp_path)
    assert lines[-1] == stages[script][0][-1]
    assert (evaluated / "predictions.csv").read_text() == (folder / "predictions.csv").read_text()
    settings = json.loads((evaluated / "results.json").read_text())["arguments"]
    assert (settings["backbone"], settings["resize"]) == ("vit-tiny", [56, 56])  # which were not given


def test_the_best_model_is_the_last_where_nothing_is_validated(stages):
    folder = stages["train_hashing.py"][1]
    assert same(best_model(folder), load(folder / "last_model.pth")["model_state_dict"])


def test_a_run_is_resumed_with_the_model_and_size_of_its_checkpoint(stages, city, foundation, tmp_path):
    """Of train_hashing.py; the tests of the curves and of stage two do the same."""
    shutil.copytree(stages["train_hashing.py"][1], tmp_path / "logs" / "train" / "run")
    flags = flags_for(city, "--resume=latest", "--val_datasets", "none")
    flags.remove("--backbone=vit-tiny")
    size = flags.index("--resize")
    del flags[size : size + 3]
    result = run_script("train_hashing.py", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert result.stdout.splitlines()[-2] == stages["train_hashing.py"][0][-1]


def test_a_frozen_backbone_is_the_foundation_and_a_trained_one_moves(stages, foundation):
    foundation = load(foundation)
    frozen = load(stages["train_hashing.py"][1] / "last_model.pth")["model_state_dict"]
    assert same({name: frozen[f"backbone.{name}"] for name in foundation}, foundation)
    last = load(stages["train.py"][1] / "last_model.pth")
    assert last["train_state"]["step"] == 2 * BATCHES
    torch.manual_seed(0)
    start = build("vit-tiny").state_dict()
    for name in ("backbone.blocks.0.attn.qkv.weight", "backbone.patch_embed.proj.weight", "linear1.weight"):
        assert not torch.equal(last["model_state_dict"][name], start[name]), name
    assert torch.equal(last["model_state_dict"]["backbone.mask_token"], start["backbone.mask_token"])


def test_stage_two_leaves_the_float_branch_bit_for_bit(stages):
    start = best_model(stages["train.py"][1])
    state = load(stages["train_rerank.py"][1] / "last_model.pth")["model_state_dict"]
    assert any("running_var" in name for name in start)
    assert same({name: state[name] for name in start}, start)
    assert all(name.startswith(BINARY) for name in state.keys() - start.keys())
    for name in ("D_fc2.weight", "branch1.conv.weight", "branch1.bn.running_mean"):
        assert not torch.equal(state[f"backbone.adapters_hashing.3.{name}"], start[f"backbone.adapters.3.{name}"])


def test_no_epochs_evaluate_the_start(city, checkpoints, tmp_path):
    """Stage two's: the float model, whose adapters the binary branch starts with."""
    flags = flags_for(city, f"--resume={checkpoints['float']}", "--epochs_num=0")
    lines, folder = run_well("train_rerank.py", [flag for flag in flags if flag != "--backbone=vit-tiny"], tmp_path)
    assert lines[-1].startswith("R@1: ")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ".lock best_model.pth calibration.json log.txt predictions.csv report.html results.json".split()
    best, start = best_model(folder), reference_model("vit-tiny").state_dict()
    assert same({name: best[name] for name in start}, start)
    adapters = [name for name in start if name.startswith("backbone.adapters.")]
    assert adapters
    for name in adapters:
        assert torch.equal(best[name.replace("adapters", "adapters_hashing")], start[name])


def test_a_new_run_starts_from_given_weights(city, checkpoints, tmp_path):
    """Published ones here; the foundation is not needed."""
    flags = flags_for(city, f"--init_from={checkpoints['hashing']}", "--epochs_num=0")
    _, folder = run_well("train_hashing.py", flags, tmp_path / "start")
    start = best_model(folder)
    assert same(start, dict(reference_model(**MODES["hashing"]).state_dict()))
    _, folder = run_well("train_hashing.py", [*flags, "--epochs_num=1", "--val_datasets", "none"], tmp_path / "run")
    tuned = load(folder / "last_model.pth")
    assert tuned["train_state"]["step"] == BATCHES
    assert not torch.equal(tuned["model_state_dict"]["linear3.weight"], start["linear3.weight"])
    assert torch.equal(tuned["model_state_dict"]["backbone.norm.weight"], start["backbone.norm.weight"])


def recalls_of(row, stage=""):
    return [float(row[f"synthetic_{stage}R@{n}"]) for n in (1, 5, 10)]


def test_stage_two_selects_by_the_recall_after_re_ranking(stages, city, tmp_path):
    """Validation gives what eval_rerank.py gives, and decides by its second stage."""
    folder = stages["train_rerank.py"][1]
    last = load(folder / "last_model.pth")
    torch.save(last["model_state_dict"], tmp_path / "last.pth")
    flags = [f"--datasets_folder={city}", "--dataset_name=synthetic", "--split=val", *SIZE, "--rerank_num=3"]
    flags += ["--backbone=vit-tiny", f"--resume={tmp_path / 'last.pth'}", "--recall_values", 1, 5, 10]
    _, evaluated = run_well("eval_rerank.py", flags, tmp_path / "run")
    results = json.loads((evaluated / "results.json").read_text())
    row = metrics_of(folder)[-1]
    assert recalls_of(row) == list(results["recalls"].values())
    assert recalls_of(row, "first_stage_") == list(results["first_stage_recalls"].values())
    scores = [sum(recalls_of(row)[:2]) for row in metrics_of(folder)]
    assert last["train_state"]["best_score"] == pytest.approx(max(scores))


def test_stage_two_can_select_by_the_codes_alone(stages, city, tmp_path):
    resume = f"--resume={stages['train.py'][1] / 'best_model.pth'}"
    _, folder = run_well("train_rerank.py", flags_for(city, resume, "--rerank_num=3", "--select_by=binary"), tmp_path)
    for binary, reranked in zip(metrics_of(folder), metrics_of(stages["train_rerank.py"][1]), strict=True):
        assert recalls_of(binary) == recalls_of(reranked, "first_stage_")
        assert not [column for column in binary if "first_stage" in column]


def test_the_frozen_branch_is_extracted_once_for_validation(city, checkpoints, monkeypatch):
    computed = []

    def spy(extractor, images, float_branch=True):
        computed.append(float_branch)
        return extract(extractor, images, float_branch=float_branch)

    monkeypatch.setattr(validation, "extract", spy)
    model = reference_model(**MODES["two_branch"])
    benchmark = Benchmark(BenchmarkConfig(datasets_folder=city, name="synthetic", split="val"))
    validate = validation.Validator([benchmark], ExtractionConfig(resize=(56, 56)), rerank_num=3)
    results = [validate(model) for _ in range(3)]
    assert computed == [True, True, False, False, False, False]
    assert results[0] == results[1] == results[2]
    assert results[0][0].first_stage is not None
    model.linear4.weight.data.neg_()  # the codes change, and with them the candidates; the cached descriptors do not
    assert validate(model)[0].first_stage is not None and len(computed) == 8


DIES_AFTER_A_CHECKPOINT = """
import os
from utils.training import trainer
save = trainer.save_checkpoint
def save_and_die(path, step, state):
    save(path, step, state)
    os._exit(9)
trainer.save_checkpoint = save_and_die
"""


def test_curves_for_tensorboard_go_on_where_a_run_is_resumed(city, checkpoints, tmp_path):
    """The model, which the flags do not name, is that of the checkpoint."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = [flag for flag in flags_for(city, "--tensorboard") if flag != "--backbone=vit-tiny"]
    first = [*flags, f"--init_from={checkpoints['float']}"]
    assert start_script("train.py", *first, cwd=tmp_path, prelude=DIES_AFTER_A_CHECKPOINT).result().status == 9
    folder = the_folder(tmp_path)
    checkpoint = (folder / "last_model.pth").read_bytes()
    assert load(folder / "last_model.pth")["train_state"]["step"] == BATCHES
    for _ in range(2):  # the second time as if the first one had been killed
        (folder / "last_model.pth").write_bytes(checkpoint)
        run_well("train.py", [*flags, f"--resume={folder / 'last_model.pth'}"], tmp_path)
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    losses = {event.step: event.value for event in events.Scalars("loss/total")}
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, 2 * BATCHES + 1))
    rows = metrics_of(folder)
    for epoch, row in enumerate(rows):
        steps = range(epoch * BATCHES + 1, (epoch + 1) * BATCHES + 1)
        assert float(row["loss"]) == pytest.approx(sum(losses[step] for step in steps) / BATCHES, rel=1e-5)
    # Resumed before its validation, an epoch is validated again, with the same result.
    recalls = {event.step: event.value for event in events.Scalars("validation/synthetic_R@1")}
    assert recalls == pytest.approx({int(row["step"]): float(row["synthetic_R@1"]) for row in rows})
    assert {"training/learning_rate", "epoch/seconds", "epoch/peak_memory_mb"} < set(events.Tags()["scalars"])
    assert {event.step for event in events.Images("curves")} == {BATCHES, 2 * BATCHES}


def complete_run(script, city, foundation, checkpoints, workers=0):
    """The flags of the runs that are stopped: with dropout of SALAD, drawn pairs, and averaged weights."""
    if script == "train_rerank.py":
        more = [f"--resume={checkpoints['float']}", "--pair_fraction=0.5"]
    else:
        more = ["--aggregation=salad", "--image_size", 126, 126, "--resize", 126, 126, "--schedule=cosine"]
        more += ["--warmup_steps=3", "--ema=0.9", f"--foundation_model_path={foundation}"]
    return flags_for(city, f"--num_workers={workers}", *more)


@pytest.fixture(scope="module")
def uninterrupted(city, foundation, checkpoints, tmp_path_factory):
    """uninterrupted(script): the folder of a run that nobody stopped, without worker processes."""

    @functools.cache
    def run(script):
        flags = complete_run(script, city, foundation, checkpoints)
        return run_well(script, flags, tmp_path_factory.mktemp("whole"))[1]

    return run


def interrupt(script, flags, cwd, number, moment):
    """Runs a script until moment(stderr) holds, sends it and its workers the signal, and waits for the end."""
    running = start_script(script, *flags, cwd=cwd)
    deadline = time.monotonic() + 240
    try:
        while not (running.stderr.exists() and moment(running.stderr.read_text(errors="replace"))):
            assert running.process.is_alive() and time.monotonic() < deadline, running.stderr.read_text()
            time.sleep(0.002)
        os.killpg(running.process.pid, number)
        return running.result(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)


def shows(pattern):
    return lambda stderr: re.search(pattern, stderr) is not None


def resume_and_compare(script, flags, cwd, expected):
    """Resumes the run below cwd, and compares what it leaves with the folder of the uninterrupted run."""
    folder = the_folder(cwd)
    flags = [flag for flag in flags if flag != "--backbone=vit-tiny"]
    lines, again = run_well(script, [*flags, f"--resume={folder / 'last_model.pth'}"], cwd)
    assert again == folder
    for resumed, complete in zip(outcome(folder), outcome(expected), strict=True):
        assert same(resumed, complete)
    assert [row["epoch"] for row in metrics_of(folder)] == ["1", "2"]
    assert lines[-1].startswith("R@1: ")


@pytest.mark.parametrize(
    ("script", "number", "status", "workers", "moment", "epoch", "batches"),
    [
        ("train.py", signal.SIGINT, 130, 2, r"Epoch 2/2[^\r\n]*loss=", 1, range(1, BATCHES)),
        ("train_rerank.py", signal.SIGUSR1, 143, 2, r"Epoch 1/2[^\r\n]*loss=", 0, range(1, BATCHES)),
        ("train_rerank.py", signal.SIGTERM, 143, 0, r"Epoch 1/2[\s\S]*Extracting", 0, [BATCHES]),  # in validation
    ],
)
def test_stopped_and_resumed_is_uninterrupted(
    uninterrupted, city, foundation, checkpoints, tmp_path, script, number, status, workers, moment, epoch, batches
):
    flags = complete_run(script, city, foundation, checkpoints, workers)
    result = interrupt(script, flags, tmp_path, number, shows(moment))
    assert result.status == status, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    folder = the_folder(tmp_path)
    assert str(folder.relative_to(tmp_path) / "last_model.pth") in result.stdout.splitlines()[-1]
    progress = load(folder / "last_model.pth")["train_state"]
    assert progress["epoch"] == epoch and progress["batch"] in batches
    resume_and_compare(script, flags, tmp_path, uninterrupted(script))


def test_killed_while_it_writes_and_resumed_is_uninterrupted(uninterrupted, city, foundation, checkpoints, tmp_path):
    def writes_its_second_checkpoint(stderr):
        return (
            list(tmp_path.glob("logs/*/*/last_model.pth")) and list(tmp_path.glob("logs/*/*/.last_model.pth.*.tmp"))
        ) or re.search(r"Epoch 2/2[^\r\n]*loss=", stderr)  # where the moment was missed

    flags = complete_run("train.py", city, foundation, checkpoints, 2)
    result = interrupt("train.py", flags, tmp_path, signal.SIGKILL, writes_its_second_checkpoint)
    assert result.status == -signal.SIGKILL
    assert load(the_folder(tmp_path) / "last_model.pth")["train_state"]["step"] == BATCHES
    resume_and_compare("train.py", flags, tmp_path, uninterrupted("train.py"))


@pytest.fixture
def finished(stages, city, tmp_path):
    """A copy of a finished run of train_rerank.py, the flags that resume it, and a function that changes its
    last_model.pth.
    """
    folder = tmp_path / "finished"
    shutil.copytree(stages["train_rerank.py"][1], folder)
    flags = ["--hashing", "--rerank", "--rerank_num=3", f"--resume={folder / 'last_model.pth'}"]

    def edit(change):
        checkpoint = load(folder / "last_model.pth")
        change(checkpoint)
        torch.save(checkpoint, folder / "last_model.pth")

    return folder, flags_for(city, *flags), edit


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lr=0.001"], "--lr 0.001 (was 0.0004)"),
        (["--train_batch_size=5"], "--train_batch_size 5 (was 4)"),
        (["--seed=1", "--optim=sgd"], "--seed 1 (was 0), --optim sgd (was adam)"),
        (["--cities", "Alder"], "--cities ['Alder'] (was ['Alder', 'Birch'])"),
        (["--schedule=cosine"], "--schedule cosine (was step)"),
        (["--ema=0.9"], "--ema 0.9 (was None)"),
    ],
)
def test_resuming_with_other_arguments_is_refused(finished, tmp_path, flags, words):
    folder, command, _ = finished
    before = content(folder)
    cwd = tmp_path / "run"
    cwd.mkdir()
    expect_refusal(run_here("train_rerank.py", *command, "--epochs_num=3", *flags, cwd=cwd), cwd, words)
    assert content(folder) == before


def test_more_epochs_change_the_cosine_schedule_and_are_refused(uninterrupted, city, checkpoints, foundation, tmp_path):
    last = uninterrupted("train.py") / "last_model.pth"
    command = [*complete_run("train.py", city, foundation, checkpoints), f"--resume={last}", "--epochs_num=3"]
    expect_refusal(run_here("train.py", *command, cwd=tmp_path), tmp_path, "schedule: --epochs_num 3 (was 2).")
    result = run_here("train.py", *command, "--schedule=step", cwd=tmp_path)
    expect_refusal(result, tmp_path, "schedule: --schedule step (was cosine).")


def test_the_averaged_weights_are_validated_saved_and_tested(city, tmp_path):
    flags = flags_for(city, "--train_backbone", "--epochs_num=1", "--lr=0.02", "--ema=0.9", "--recall_values", 1, 5, 10)
    lines, folder = run_well("train.py", flags, tmp_path / "train")
    last, best = load(folder / "last_model.pth"), best_model(folder)
    average = last["average_state_dict"]
    assert average["updates"] == BATCHES
    assert same(best, {**last["model_state_dict"], **average["entries"]})
    assert not same(best, last["model_state_dict"])

    def evaluated(split):
        more = [*SIZE, f"--split={split}", "--recall_values", 1, 5, 10, f"--resume={folder / 'best_model.pth'}"]
        return run_well("eval.py", [f"--datasets_folder={city}", "--dataset_name=synthetic", *more], tmp_path / split)

    assert evaluated("test")[0][-1] == lines[-1]
    _, validated = evaluated("val")
    recalls = json.loads((validated / "results.json").read_text())["recalls"]
    (row,) = metrics_of(folder)
    assert recalls_of(row) == pytest.approx(list(recalls.values()))


def test_a_better_best_model_is_kept_and_patience_ends_the_run(finished, tmp_path):
    folder, command, edit = finished
    edit(lambda checkpoint: checkpoint["train_state"].update(best_score=1000.0, not_improved=0))
    best = (folder / "best_model.pth").read_bytes()
    result = run_script("train_rerank.py", *command, "--epochs_num=9", "--patience=2", cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert (folder / "best_model.pth").read_bytes() == best
    assert load(folder / "last_model.pth")["train_state"]["best_score"] == 1000
    assert [row["epoch"] for row in metrics_of(folder)] == ["1", "2", "3", "4"]

    edit(lambda checkpoint: checkpoint["train_state"].update(best_score=-1.0, not_improved=0))
    result = run_script("train_rerank.py", *command, "--epochs_num=5", cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert (folder / "best_model.pth").read_bytes() != best
    assert same(best_model(folder), load(folder / "last_model.pth")["model_state_dict"])
    row = metrics_of(folder)[-1]
    assert row["epoch"] == "5" and float(row["learning_rate"]) == 2e-4
    score = float(row["synthetic_R@1"]) + float(row["synthetic_R@5"])
    assert load(folder / "last_model.pth")["train_state"]["best_score"] == pytest.approx(score)


def test_losses_that_are_not_finite_end_the_run_and_the_last_checkpoint_stays(finished, tmp_path):
    folder, command, edit = finished
    edit(lambda checkpoint: checkpoint["model_state_dict"]["linear4.weight"].fill_(3e38))
    before = content(folder)
    result = run_script("train_rerank.py", *command, "--epochs_num=3", cwd=tmp_path)
    assert result.status == 2 and "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    for word in ("not finite", "3 steps in a row", "--lr", str(folder / "last_model.pth")):
        assert word in message
    assert re.search(rf"step {2 * BATCHES + 3}\b|step {2 * BATCHES + 4}\b", message), message
    after = content(folder)
    assert {name for name in before if after[name] != before[name]} == {"log.txt"}


def test_losses_that_are_not_finite_before_the_first_checkpoint(city, foundation, tmp_path):
    broken = load(foundation)
    broken["norm.bias"].fill_(3e38)
    torch.save(broken, tmp_path / "broken.pth")
    result = run_script(
        "train.py", *flags_for(city, f"--foundation_model_path={tmp_path / 'broken.pth'}"), cwd=tmp_path
    )
    assert result.status == 2 and "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    assert "not finite" in message and "3 steps in a row" in message
    assert not (the_folder(tmp_path) / "last_model.pth").exists()
    assert "last_model.pth" not in message, "there is no such checkpoint to go on from"


def break_images(city, tmp_path, count):
    """A copy of the city with that many images of one place cut short; their names."""
    shutil.copytree(city, tmp_path / "broken")
    images = sorted((tmp_path / "broken" / "gsv_cities" / "Images" / "Birch").glob("Birch_0000003_*.jpg"))
    assert len(images) == 4
    for path in images[:count]:
        path.write_bytes(path.read_bytes()[:200])
    return tmp_path / "broken", [path.name for path in images[:count]]


def test_a_few_unreadable_images_are_counted_and_named(city, foundation, tmp_path):
    broken, names = break_images(city, tmp_path, 1)  # of 104
    flags = ["--images_per_place=3", "--epochs_num=1", "--val_datasets", "none"]
    flags.append(f"--foundation_model_path={foundation}")
    _, folder = run_well("train.py", flags_for(broken, *flags), tmp_path / "run")
    assert metrics_of(folder)[-1]["unreadable_images"] == "1"
    assert sum(names[0] in line for line in (folder / "log.txt").read_text().splitlines()) == 1


def test_more_than_1_percent_unreadable_ends_the_run(city, foundation, tmp_path):
    broken, names = break_images(city, tmp_path, 2)
    (tmp_path / "run").mkdir()
    command = flags_for(broken, "--images_per_place=3", f"--foundation_model_path={foundation}")
    result = run_script("train.py", *command, cwd=tmp_path / "run")
    assert result.status == 2 and "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    assert "2 of 104" in message and "1%" in message and str(broken) in message


def expect_refusal(result, cwd, *words):
    """Status 2, a short clear message with these words on stderr, no traceback, and nothing written."""
    assert result.status == 2, result
    assert "Traceback" not in result.stdout + result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    assert 1 <= len(message.splitlines()) <= 3 and len(message) < 1200, result.stderr
    for word in words:
        assert str(word) in message, (word, message)
    assert list(cwd.iterdir()) == []


@pytest.fixture
def refuse(city, tmp_path):
    """refuse(script, flags, words): runs a script with flags added to a command line that lacks weights alone."""

    def run(script, flags, words):
        cwd = tmp_path / "run"
        cwd.mkdir()
        expect_refusal(run_here(script, *flags_for(city, *flags), cwd=cwd), cwd, *words)

    return run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gsv_cities_folder=/nowhere"], ["/nowhere", "Dataframes"]),
        (["--cities", "Alder", "Elm", "Fir"], ["Elm, Fir", "Alder, Birch", "--cities"]),
        (["--images_per_place=5"], ["5 or more images", "--images_per_place", "4"]),
        (["--images_per_place=1"], ["--images_per_place 1", "2"]),
        (["--train_batch_size=27"], ["--train_batch_size 27", "26 places"]),
        (
            ["--val_datasets", "synthetic", "pitts30k"],
            ["pitts30k", "synthetic", "--val_datasets NAME", "--val_datasets none"],
        ),
        (["--dataset_name=tokyo247"], ["tokyo247", "synthetic"]),
        (["--datasets_folder=/nowhere"], ["/nowhere"]),
        (["--image_size", 56, 100], ["--image_size", "56 x 100", "14"]),
        (["--warmup_steps=-1"], ["--warmup_steps", "'-1'"]),
        (["--ema=1"], ["--ema", "'1'", "below 1"]),
        (["--ema=0"], ["--ema", "'0'", "above 0"]),
        (["--pair_fraction=0.5"], ["--pair_fraction"]),
        (["--foundation_model_path=a", "--init_from=b.pth"], ["--init_from", "--foundation_model_path"]),
        (["--hashing"], ["--hashing", "use train_hashing.py"]),
        (["--resume=/nowhere/last_model.pth"], ["/nowhere/last_model.pth", "does not exist"]),
    ],
)
def test_bad_arguments_of_train(refuse, flags, words):
    refuse("train.py", ["--train_backbone", *flags], words)


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("train_hashing.py", [], ["vit-tiny", "--train_backbone"]),
        ("train_hashing.py", ["--train_backbone", "--pair_fraction=0"], ["--pair_fraction", "'0'"]),
        ("train_hashing.py", ["--train_backbone", "--pair_fraction=1.5"], ["--pair_fraction", "'1.5'"]),
        ("train_rerank.py", ["--hashing", "--rerank"], ["--init_from NAME_OR_FILE", "--resume RUN"]),
        ("train_rerank.py", ["--init_from=SelaVPRplusplus_bas"], ["Did you mean SelaVPRplusplus_base?"]),
    ],
)
def test_bad_arguments_of_the_others(refuse, script, flags, words):
    refuse(script, flags, words)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("hashing", ["hashing.pth", "--hashing", "float model"]),
        ("two_branch", ["two_branch.pth", "last_model.pth", "--rerank"]),
        ("salad", ["salad.pth", "--aggregation=salad"]),
    ],
)
def test_stage_two_from_another_model(refuse, checkpoints, start, words):
    refuse("train_rerank.py", ["--aggregation=gem", f"--resume={checkpoints[start]}"], words)


@pytest.mark.parametrize(
    ("flag", "file", "words"),
    [
        ("--resume", "best_model.pth", ["no training state", "last_model.pth", "--init_from"]),
        ("--init_from", "last_model.pth", ["training run", "--resume", "best_model.pth"]),
    ],
)
def test_each_way_to_start_refuses_the_others_file(refuse, stages, flag, file, words):
    path = stages["train.py"][1] / file
    refuse("train.py", ["--train_backbone", f"{flag}={path}"], [path, *words])


def test_a_truncated_file_to_resume(refuse, stages, tmp_path):
    complete = (stages["train.py"][1] / "last_model.pth").read_bytes()
    path = tmp_path / "last_model.pth"
    path.write_bytes(complete[: len(complete) // 2])
    refuse("train.py", [f"--resume={path}"], [path, "truncated"])


def test_save_dir_that_is_not_writable(refuse, tmp_path):
    (tmp_path / "file").write_text("a file\n")
    refuse("train.py", ["--train_backbone", f"--save_dir={tmp_path / 'file' / 'runs'}"], [tmp_path / "file" / "runs"])
