"""What the fault tests share: command lines, what they leave undisturbed, and the table of faults at the end."""

import functools
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.evaluations import SCRIPTS
from helpers.evaluations import flags_for as eval_flags
from helpers.models import MODES, build
from helpers.processes import run_script
from helpers.trainings import flags_for as train_flags
from helpers.unified_sources import write_golden_sources
from processes import start_forked, start_torchrun
from trials import SEED, TRIALS, Tally

from utils.retrieval.config import ExtractionConfig
from utils.retrieval.index import IndexMetadata, metadata_of

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]  # they read /proc


@pytest.fixture
def rng(request) -> random.Random:
    """The generator of a trial, also seeded with the name of its test."""
    return random.Random(f"{request.node.originalname} {request.param}")


@pytest.fixture
def tally(record_property) -> Tally:
    return Tally(record_property)


@pytest.fixture(scope="session")
def index(tiny_benchmark, checkpoints, tmp_path_factory) -> Path:
    """An index of the tiny benchmark by the two-branch model."""
    folder = tmp_path_factory.mktemp("index")
    flags = eval_flags(tiny_benchmark, checkpoints["two_branch"], "--save_index=index")
    result = run_script("eval_rerank.py", *flags, cwd=folder)
    assert result.status == 0, result.stderr
    return folder / "index"


@pytest.fixture(scope="session")
def commands(request, checkpoints, tiny_benchmark, tmp_path_factory) -> Callable[[str], list[object]]:
    """commands(script or module): the flags of a run that lasts a few seconds at most."""

    @functools.cache
    def flags_of(script: str) -> list[object]:
        if script.startswith("eval"):
            modes = {script: mode for mode, script in SCRIPTS.items()}
            return eval_flags(tiny_benchmark, checkpoints[modes[script]])
        if script == "search.py":
            queries = sorted((tiny_benchmark / "tiny" / "images" / "test" / "queries").iterdir())
            index = request.getfixturevalue("index")
            return [*queries, f"--index={index}", "--save_pictures=pictures", "--device=cpu"]
        if script == "build_index.py":
            images = tiny_benchmark / "tiny" / "images" / "test" / "database"
            flags = [f"--resume={checkpoints['float']}", "--resize", 56, 56, "--num_workers=0", "--device=cpu"]
            return [images, "--index=made", "--append", *flags]
        if script == "export.py":
            return []
        if script == "datasets.synthetic":
            return ["made", "--places=12", "--val_places=3", "--test_places=3", "--size", 48, 48]
        if script == "datasets.unified":
            return ["made", *write_golden_sources(tmp_path_factory.mktemp("sources"))]
        flags = train_flags(request.getfixturevalue("city"), "--train_batch_size=8")  # two epochs of three batches
        if script == "train_rerank.py":
            return [*flags, f"--resume={checkpoints['float']}", "--pair_fraction=0.5"]
        flags.append(f"--foundation_model_path={request.getfixturevalue('foundation')}")
        return flags + ["--pair_fraction=0.5", "--ema=0.9"] * (script == "train_hashing.py")

    return flags_of


class Undisturbed(NamedTuple):
    """What a run that nobody disturbed left in its folder, and the seconds that it took after its start-up."""

    cwd: Path
    seconds: float

    @property
    def folder(self) -> Path:
        (folder,) = self.cwd.glob("logs/*/*")
        return folder


@pytest.fixture(scope="session")
def undisturbed(commands, tmp_path_factory) -> Callable[..., Undisturbed]:
    """undisturbed(script, *more flags, prelude=""): such a run, made once."""

    @functools.cache
    def run(script: str, *more: object, prelude: str = "") -> Undisturbed:
        subject = start_forked(script, [*commands(script), *more], tmp_path_factory.mktemp("undisturbed"), prelude)
        subject.wait_for_start()
        start = time.perf_counter()
        assert subject.wait(240) == 0, subject.stderr
        return Undisturbed(subject.cwd, time.perf_counter() - start)

    return run


@pytest.fixture(scope="session")
def seconds_of_two_ranks(commands, tmp_path_factory) -> float:
    """How long two ranks take to train, start-up included."""
    start = time.perf_counter()
    subject = start_torchrun("train.py", commands("train.py"), tmp_path_factory.mktemp("two_ranks"))
    assert subject.wait(240) == 0, subject.stderr
    return time.perf_counter() - start


@pytest.fixture(scope="session")
def metadata() -> IndexMetadata:
    """Of an index of a two-branch model."""
    torch.manual_seed(0)
    return metadata_of(build(**MODES["two_branch"]), ExtractionConfig(resize=(56, 56)))


def pytest_report_header() -> str:
    return f"faults: SEED={SEED} TRIALS={TRIALS}"


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints what was tried how often, and what went wrong, as a Markdown table."""
    rows = defaultdict(list)
    for status in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(status, []):
            if "tests/faults/" in report.nodeid and (report.when == "call" or not report.passed):
                rows[report.nodeid.split("::")[-1].split("[")[0]].append(report)
    if not rows:
        return
    terminalreporter.section(f"faults: SEED={SEED} TRIALS={TRIALS}")
    terminalreporter.write_line("| fault | tried | survived | defects |\n| --- | --- | --- | --- |")
    for name, reports in rows.items():
        properties = [dict(report.user_properties) for report in reports]
        tried = sum(values.get("tries", 1) for values in properties)
        defects = [f"{text} (after: `{fault}`)" for values in properties for text, fault in values.get("defects", [])]
        defects += [report.outcome for report in reports if not report.passed and not report.user_properties]
        cells = [name.removeprefix("test_").replace("_", " "), tried, tried - len(defects), "; ".join(defects[:3])]
        terminalreporter.write_line("| " + " | ".join(str(cell).replace("\n", " ") for cell in cells) + " |")
