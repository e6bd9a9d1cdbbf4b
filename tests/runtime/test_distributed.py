"""Two processes (torchrun, gloo) against one: the same steps on the same batch, and the scripts from end to end."""

import csv
import time
from pathlib import Path

import pytest
import torch
from helpers import distributed_worker
from helpers.evaluations import flags_for
from helpers.indexes import content
from helpers.models import reference_model
from helpers.processes import ROOT, run_script, run_two_ranks, torchrun
from helpers.trainings import flags_for as flags_for_training
from helpers.trainings import metrics_of, the_folder

from datasets.synthetic import CityConfig, make_city

pytestmark = pytest.mark.distributed

WORKER = Path(distributed_worker.__file__)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the worker found, by rank."""
    folder = tmp_path_factory.mktemp("worker")
    prelude = f"import sys; sys.path.append({str(WORKER.parents[1])!r})"
    for result in run_two_ranks(WORKER, folder / "found.pt", "cpu", cwd=folder, prelude=prelude):
        assert result.status == 0, result.stderr
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone():
    """The same steps in this one process."""
    sizes = [len(distributed_worker.LABELS)]
    return {"float": distributed_worker.train(False, sizes), "hashing": distributed_worker.train(True, sizes)}


@pytest.mark.parametrize("split", ["even", "uneven"])
@pytest.mark.parametrize("branch", ["float", "hashing"])
def test_two_ranks_are_one(found, alone, branch, split):
    losses, state = alone[branch]
    start = reference_model("vit-tiny", "gem", hashing=branch == "hashing").state_dict()
    assert losses[-1, 0] < losses[0, 0]
    assert sum(not torch.allclose(state[name], start[name], atol=1e-4) for name in state) > 20
    for rank in found:
        assert torch.allclose(rank[split][branch][0], losses, rtol=1e-5, atol=1e-7)
        assert rank[split][branch][1].keys() == state.keys()
        for name, value in rank[split][branch][1].items():
            assert torch.allclose(value, state[name], rtol=0, atol=1e-5), name
    for left, right in zip(*(rank[split][branch][1].values() for rank in found), strict=True):
        assert torch.equal(left, right)  # the ranks must not drift apart


@pytest.mark.parametrize(("split", "sizes"), [("even", [8, 8]), ("uneven", [11, 5])])
def test_gather_batch(found, split, sizes):
    first = 0
    for rank, size in zip(found, sizes, strict=True):
        gathered, gradient = rank[split]["gather"]
        assert torch.equal(gathered, torch.arange(48.0).reshape(16, 3))
        assert torch.equal(gradient, torch.arange(first, first + size, dtype=torch.float32)[:, None].expand(-1, 3))
        first += size


def test_broadcast_tensors(found):
    assert [float(rank["broadcast"]) for rank in found] == [5, 5]


def test_the_error_of_the_main_rank_is_that_of_all(found):
    assert [rank["error"] for rank in found] == ["no such file"] * 2


def test_train(tmp_path):
    city = tmp_path / "city"
    config = CityConfig(cities=("Alder",), places=13, photos_per_place=2, val_places=3, test_places=3, size=(64, 64))
    make_city(city, config, progress=False)
    flags = flags_for_training(city, "--cities", "Alder", "--train_backbone", "--schedule=cosine", "--ema=0.9")
    printed = torchrun(ROOT / "train.py", *flags, cwd=tmp_path)
    folder = the_folder(tmp_path)
    files = (
        ".lock best_model.pth calibration.json curves.png last_model.pth log.txt metrics.csv predictions.csv "
        "report.html results.json"
    )
    assert sorted(path.name for path in folder.iterdir()) == files.split()
    assert [(row["epoch"], row["step"]) for row in metrics_of(folder)] == [("1", "3"), ("2", "6")]
    lines = printed.splitlines()
    assert sum(line.startswith("R@1: ") for line in lines) == 1 and lines[-2].startswith("R@1: ")


def predictions(cwd):
    (path,) = cwd.glob("logs/eval/*/predictions.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_missing_dataset_does_not_keep_two_processes_from_evaluating_the_other(tiny_benchmark, checkpoints, tmp_path):
    flags = [f"--datasets_folder={tiny_benchmark}", "--dataset_name", "missing", "tiny", "--backbone=vit-tiny"]
    flags += [f"--resume={checkpoints['float']}", "--resize", 28, 28, "--num_workers=0", "--device=cpu"]
    main, _ = run_two_ranks("eval.py", *flags, cwd=tmp_path)
    assert main.status == 2 and "1 of 2 datasets failed: missing" in main.stderr
    (summary,) = (tmp_path / "logs/eval").glob("*/summary.csv")
    assert "tiny,,16,10," in summary.read_text()


def test_build_index(tiny_benchmark, checkpoints, tmp_path):
    """The model that the main rank recognises in the file reaches the other one."""
    images = tiny_benchmark / "tiny" / "images" / "test" / "database"
    flags = [images, f"--resume={checkpoints['two_branch']}", "--resize", 56, 56, "--num_workers=0", "--device=cpu"]
    flags += ["--infer_batch_size=4"]
    main, other = run_two_ranks("build_index.py", *flags, "--index=two", cwd=tmp_path)
    assert (main.status, other.status) == (0, 0), main.stderr + other.stderr
    assert main.stdout.count("16 images") == 2 and not other.stdout
    result = run_script("build_index.py", *flags, "--index=one", cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_eval(tiny_benchmark, checkpoints, tmp_path):
    more = ["--rerank_num=5", "--infer_batch_size=4", "--save_index=index"]
    flags = flags_for(tiny_benchmark, checkpoints["two_branch"], *more)
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    main, other = run_two_ranks("eval_rerank.py", *flags, cwd=tmp_path / "two")
    result = run_script("eval_rerank.py", *flags, cwd=tmp_path / "one")
    assert (main.status, other.status, result.status) == (0, 0, 0), main.stderr + other.stderr + result.stderr
    assert main.stdout.splitlines()[-2] == result.stdout.splitlines()[-2]
    two, one = predictions(tmp_path / "two"), predictions(tmp_path / "one")
    assert len(one) == 160
    for left, right in zip(two, one, strict=True):
        assert float(left.pop("distance")) == pytest.approx(float(right.pop("distance")), abs=1e-5)
        assert left == right
    assert content(tmp_path / "two" / "index") == content(tmp_path / "one" / "index")


JOINS = """
from utils.runtime import distributed
from utils.runtime.script import cli_main
distributed.START_SECONDS = 5
cli_main(lambda: distributed.init("cpu"))
"""
OTHER = {  # what rank 1 does first: the difference that is stated
    "import sys; sys.argv[1] = '--resize=70'": "rank 1 has another command line than rank 0 (--resize=70 instead of --",
    "import sys; sys.argv += ['--index=a']": "another command line than rank 0 (--index=a instead of nothing)",
    "from utils.runtime import distributed; distributed.ROOMS = ('model',)": "rank 1 has another code than rank 0 (",
    "import platform; platform.python_version = lambda: '3.9'": "another version of a library than rank 0 (python 3.9",
    "import sys; sys.exit(1)": "has waited for the other ranks for 5 seconds at most",
    "": "",
}


@pytest.mark.parametrize("prelude", OTHER)
def test_ranks_that_differ_are_named_at_the_start(tmp_path, prelude):
    script = tmp_path / "joins.py"
    script.write_text(JOINS)
    started = time.monotonic()
    first, second = run_two_ranks(script, "--resize=56", cwd=tmp_path, preludes=("", prelude))
    assert time.monotonic() - started < 30
    if not prelude:
        assert (first.status, second.status) == (0, 0), first.stderr + second.stderr
        return
    assert first.status == 2 and OTHER[prelude] in first.stderr and "Traceback" not in first.stderr
    if "exit" not in prelude:
        assert second.status == 2 and OTHER[prelude] in second.stderr
