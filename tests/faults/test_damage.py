"""Bit flips and truncations of the files that the project writes and reads again: refused, or without effect."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.indexes import content, features_of, make_chunk, writer_of
from helpers.models import build
from helpers.processes import run_script
from helpers.trainings import load, same
from outcomes import REFUSALS, problems_of_an_end
from trials import TRIALS, trials

from model.weights import load_weights
from utils.training.checkpoints import TrainState, read_run_checkpoint, restore
from utils.training.config import TrainingConfig
from utils.training.losses import float_losses
from utils.training.step import TrainingStep

pytestmark = pytest.mark.slow

FAULTS = 40  # per trial, all in this process


def damage(rng: random.Random, path: Path) -> str:
    """Damages a file as disks and interrupted copies do. What was done."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "flip", "truncate", "zeros", "append"])
    ends = [rng.randrange(min(len(data), 4096)), len(data) - 1 - rng.randrange(min(len(data), 8192))]
    place = rng.choice([rng.randrange(len(data)), *ends])  # the headers of archives are at the ends
    if kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del data[place:]
    elif kind == "zeros":
        place -= place % 512
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    else:
        data += rng.randbytes(rng.randint(1, 600))
    path.write_bytes(data)
    return f"{path.name}: {kind} at {place}"


def outcome_of(read: Callable[[], object]) -> tuple[object, list[str]]:
    """What reading gives, or None if it refuses; and the problem if it ends in another way."""
    try:
        return read(), []
    except REFUSALS:
        return None, []
    except Exception as error:  # noqa: BLE001 - every other one is a defect
        return None, [f"{type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}"]


@pytest.fixture(scope="module")
def saved(undisturbed) -> Path:
    """The folder of a run of train.py."""
    return undisturbed("train.py").folder


@trials(-(-TRIALS // 4))
def test_damaged_weights_are_refused_or_the_same(rng, saved, tally, tmp_path):
    model, original = build(), load(saved / "best_model.pth")
    data = (saved / "best_model.pth").read_bytes()
    path = tmp_path / "best_model.pth"
    for _ in range(FAULTS):
        path.write_bytes(data)
        fault = damage(rng, path)
        loaded, problems = outcome_of(lambda: load_weights(model, path) or model.state_dict())
        if loaded is not None and not same(dict(loaded), dict(original)):
            problems.append("other weights are loaded without a word")
        tally.add(fault, problems)
    tally.finish()


def resumed(path: Path) -> dict:
    """Everything that a run continues from."""
    step = TrainingStep(build(), TrainingConfig(), criterion=float_losses, branch="float")
    checkpoint = read_run_checkpoint(path)
    state = restore(checkpoint, step, TrainState(arguments=checkpoint.content["train_state"]["arguments"]))
    return {"model": dict(step.model.state_dict()), "optimizer": step.optimizer.state_dict(), "state": vars(state)}


@trials(-(-TRIALS // 4))
def test_a_damaged_checkpoint_is_refused_or_the_same(rng, saved, tally, tmp_path):
    original = resumed(saved / "last_model.pth")
    data = (saved / "last_model.pth").read_bytes()
    shutil.copy(saved / "best_model.pth", tmp_path)
    path = tmp_path / "last_model.pth"
    for _ in range(FAULTS // 2):
        path.write_bytes(data)
        fault = damage(rng, path)
        loaded, problems = outcome_of(lambda: resumed(path))
        if loaded is not None and not same(loaded, original):
            problems.append("a run would continue from another state without a word")
        tally.add(fault, problems)
    tally.finish()


@pytest.fixture
def folder(tmp_path, metadata) -> Path:
    """A complete index of three chunks."""
    with writer_of(tmp_path / "index", metadata) as writer:
        for first, count in ((0, 3), (3, 4), (7, 2)):
            writer.append(make_chunk(first, count))
        writer.features()
    return tmp_path / "index"


def damage_any(rng: random.Random, folder: Path, files: dict[str, bytes]) -> str:
    """Restores an index, and then damages or removes one of its files."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    name = rng.choice(list(files))
    if rng.random() < 0.05:
        (folder / name).unlink()
        return f"{name} removed"
    return damage(rng, folder / name)


@trials(-(-TRIALS // 2))
def test_a_damaged_index_is_refused_or_the_same(rng, folder, tally):
    files, original = content(folder), features_of(folder)
    for _ in range(5 * FAULTS):
        fault = damage_any(rng, folder, files)
        features, problems = outcome_of(lambda: features_of(folder))
        if features is not None and features != original:
            problems.append(
                f"{len(features[0])} images are loaded without a word, not the {len(original[0])} of the index"
            )
        tally.add(fault, problems)
    tally.finish()


@trials(-(-TRIALS // 2), fixed=1)
def test_a_damaged_index_that_is_trusted_does_no_worse_than_to_give_other_features(rng, folder, tally):
    files = content(folder)
    for _ in range(5 * FAULTS):
        fault = damage_any(rng, folder, files)
        tally.add(f"{fault}, verify=False", outcome_of(lambda: features_of(folder, verify=False))[1])
    tally.finish()


@trials(-(-TRIALS // 2), fixed=1)
def test_appending_to_a_damaged_index_is_refused_or_gives_the_undamaged_one(rng, folder, metadata, tally):
    files = content(folder)
    with writer_of(folder, metadata, append=True) as writer:
        writer.append(make_chunk(9, 2))
        writer.features()
    expected = content(folder)

    def append() -> None:
        with writer_of(folder, metadata, append=True) as writer:
            images = make_chunk(0, 11).images
            missing = writer.to_extract(images)
            if len(missing):
                writer.append(make_chunk(int(missing[0]), len(missing)))
            writer.features()

    for _ in range(FAULTS):
        fault = damage_any(rng, folder, files)
        before, (was_readable, _) = content(folder), outcome_of(lambda: features_of(folder))
        _, problems = outcome_of(append)
        after = content(folder)
        if after not in (before, expected):
            features, more = outcome_of(lambda: features_of(folder))
            problems += more
            if features is not None and len(features[0]) != 11:
                problems.append("the index holds other images than before and the appended ones")
            elif not more and features is None and was_readable:
                problems.append("the index was changed, and is now refused")
        tally.add(f"{fault}, then append", problems)
    tally.finish()


@trials()
def test_scripts_end_with_a_message_or_the_same_predictions(rng, commands, undisturbed, index, tally, tmp_path):
    """Of an index, search.py's and eval_rerank.py's; of a run, its resuming."""
    kind = rng.choice(["index", "search", "resume"])
    if kind == "resume":
        expected = undisturbed("train.py").folder
        shutil.copytree(expected, tmp_path / "run")
        path = tmp_path / "run" / rng.choice(["last_model.pth", "best_model.pth"])
        script, flags = "train.py", [*commands("train.py"), f"--resume={tmp_path / 'run' / 'last_model.pth'}"]
        fault = damage(rng, path)
    else:
        shutil.copytree(index, tmp_path / "index")
        script = {"index": "eval_rerank.py", "search": "search.py"}[kind]
        loaded = ["--load_index=index"] if kind == "index" else [f"--index={tmp_path / 'index'}"]
        flags = [*commands(script), *loaded]
        fault = damage_any(rng, tmp_path / "index", content(tmp_path / "index"))
    result = run_script(script, *flags, cwd=tmp_path, timeout=60)
    problems = problems_of_an_end(result.status, result.stderr)
    if result.status == 0:
        good = undisturbed(script)
        if kind == "search":
            same_output = result.stdout == (good.cwd / "stdout.captured").read_text()
        else:
            (predictions,) = [*tmp_path.glob("logs/eval/*/predictions.csv"), *tmp_path.glob("run/predictions.csv")]
            same_output = predictions.read_bytes() == (good.folder / "predictions.csv").read_bytes()
        if not same_output:
            problems.append("status 0, but other results")
    tally.add(f"{script}: {fault}", problems)
    tally.finish()
