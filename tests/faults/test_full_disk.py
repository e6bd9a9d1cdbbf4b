"""A disk that is full at any write: a message, no unfinished files, and a run that goes on once there is space."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.indexes import content
from helpers.processes import Result
from helpers.trainings import load
from helpers.unified_sources import contents
from outcomes import SMALL_CHUNKS, differences, last_checkpoint
from processes import start_forked, temporary_files
from trials import log_uniform, trials

pytestmark = pytest.mark.slow

FULL = r"(No space left on device|File too large)"
NAMED = r"(logs/\S+|temporary file in \S+)"
LIMITED = "\nimport resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"


class Case(NamedTuple):
    """A script that writes below logs/; `again`: its flags once there is space; `problems`: what is wrong after it."""

    script: str
    flags: list[object]
    again: Callable[[], list[object]]
    problems: Callable[[], list[str]]
    prelude: str = ""
    most_bytes: float = 40e6  # that it writes


@pytest.fixture
def cases(commands, undisturbed, tmp_path) -> dict[str, Callable[[], Case]]:
    """{name: function that prepares a case in the folder tmp_path}."""

    def training(resumed: bool) -> Case:
        flags = commands("train.py")
        if resumed:
            shutil.copytree(undisturbed("train.py", "--epochs_num=1").folder, tmp_path / "logs" / "train" / "run")

        def again() -> list[object]:
            last = last_checkpoint(tmp_path)
            if last is None:
                shutil.rmtree(tmp_path / "logs" / "train", ignore_errors=True)
            return [*flags, f"--resume={last}"] if last else flags

        def problems() -> list[str]:
            return differences(last_checkpoint(tmp_path).parent, undisturbed("train.py").folder)

        return Case("train.py", again(), again, problems)

    def index() -> Case:
        more = ["--save_index=logs/index"]
        folder = tmp_path / "logs" / "index"

        def problems() -> list[str]:
            expected = undisturbed("eval_rerank.py", *more, prelude=SMALL_CHUNKS).cwd / "logs" / "index"
            return [] if content(folder) == content(expected) else ["the index differs from an undisturbed one"]

        def again() -> list[object]:
            return [*commands("eval_rerank.py"), *more, *["--append"] * (folder / "metadata.json").exists()]

        return Case("eval_rerank.py", again(), again, problems, prelude=SMALL_CHUNKS, most_bytes=2e5)

    def pictures() -> Case:
        flags = [*commands("search.py"), "--save_pictures=logs/pictures"]
        folder = tmp_path / "logs" / "pictures"

        def problems() -> list[str]:
            return [] if len(list(folder.iterdir())) == 10 else ["not every picture was drawn"]

        return Case("search.py", flags, lambda: flags, problems, most_bytes=2e6)

    def made() -> Case:
        flags = ["logs/made", *commands("datasets.synthetic")[1:]]
        expected = undisturbed("datasets.synthetic").cwd / "made"

        def problems() -> list[str]:
            return [] if contents(tmp_path / "logs" / "made") == contents(expected) else ["other images"]

        return Case("datasets.synthetic", flags, lambda: flags, problems, most_bytes=3e5)

    return {
        "a new training": lambda: training(False),
        "a resumed training": lambda: training(True),
        "an evaluation that saves an index": index,
        "a search that saves pictures": pictures,
        "a synthetic city": made,
    }


def problems_of_a_refusal(result: Result, cwd: Path) -> list[str]:
    """After a disk was full."""
    problems = [f"left {name}" for name in temporary_files(cwd)[:1]]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if "Traceback" in result.stderr or result.status != 2 or not errors:
        last = (result.stderr.strip() or "nothing on stderr").splitlines()[-1]
        return [*problems, f"status {result.status}: {last[:200]}"]
    if not re.search(FULL, errors[-1]):
        problems.append(f"the message gives no reason: {errors[-1][:200]}")
    if not re.search(NAMED, errors[-1]):
        problems.append(f"the message names no file: {errors[-1][:200]}")
    for path in [*cwd.glob("logs/*/*/last_model.pth"), *cwd.glob("logs/*/*/best_model.pth")]:
        load(path)  # complete, if it exists
    return problems


def run_without_and_with_space(case: Case, prelude: str, cwd: Path, make_space: Callable[[], None]) -> list[str]:
    subject = start_forked(case.script, case.flags, cwd, case.prelude + prelude)
    problems = subject.end(seconds=60)
    result = Result(subject.wait(0), subject.stdout, subject.stderr)
    if result.status:
        problems += problems_of_a_refusal(result, cwd)
        make_space()
        subject = start_forked(case.script, case.again(), cwd, case.prelude)
        problems += subject.end(seconds=60)
        if subject.wait(0):
            return [*problems, f"with space again: status {subject.wait(0)}: {subject.stderr[-200:]}"]
    return problems + case.problems()


@trials()
def test_a_file_that_may_not_grow_further_ends_the_run_with_a_message(rng, cases, tally, tmp_path):
    name = rng.choice(list(cases))
    case = cases[name]()
    limit = log_uniform(rng, 16_384, case.most_bytes)  # more than log.txt and what is printed
    problems = run_without_and_with_space(case, LIMITED.format(limit), tmp_path, lambda: None)
    tally.add(f"{name} ({case.script}), files of at most {limit} bytes", problems)
    tally.finish()


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(size): mounts a disk of so many bytes at tmp_path/logs, or gives the one that is there that size."""
    folder = tmp_path / "logs"
    folder.mkdir()

    def mount(size: int) -> None:
        options = f"size={size}" + (",remount" if folder.is_mount() else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount")
@trials()
def test_a_full_disk_ends_the_run_with_a_message(rng, cases, small_disk, tally, tmp_path):
    name = rng.choice(list(cases))
    small_disk(1 << 30)
    case = cases[name]()
    used = sum(path.stat().st_size for path in (tmp_path / "logs").rglob("*"))
    size = used + log_uniform(rng, 8192, case.most_bytes)
    small_disk(size)
    problems = run_without_and_with_space(case, "", tmp_path, lambda: small_disk(1 << 30))
    tally.add(f"{name} ({case.script}), a disk of {size} bytes, {used} of them used", problems)
    tally.finish()
