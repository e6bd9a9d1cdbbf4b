"""kill -9 at random moments of training, indexing and exporting: what then continues gives the files of one run."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.evaluations import predictions as predictions_of
from helpers.indexes import content
from outcomes import SLOW_WRITES, SMALL_CHUNKS, TRAININGS, differences, last_checkpoint
from processes import GRACE, Subject, catches, start_forked, temporary_files, wait_until
from trials import trials

pytestmark = pytest.mark.slow

MAX_KILLS = 3  # of one run
TRAINING_OPTIONS = ["--ema=0.9", "--schedule=cosine", "--warmup_steps=2", "--tensorboard"]
INDEX_EXPORTS, MODEL_EXPORTS = ["hloc", "npy", "pairs"], ["onnx", "safetensors"]
CONTAINER = """
import ctypes, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x20020000):  # CLONE_NEWPID | CLONE_NEWNS: `unshare --pid --mount`
    raise OSError(ctypes.get_errno(), "unshare")
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
libc.prctl(1, 9)  # PR_SET_PDEATHSIG: a container ends with the process that started it
mounts = "mount --make-rprivate / && mount -t proc proc /proc && mount --bind '{folder}' '{mount}'"
subprocess.run(mounts, shell=True, check=True)
os.chdir("{mount}")
assert os.getpid() == 1
"""


def wait_for_a_moment(rng: random.Random, subject: Subject, seconds: float) -> None:
    """Waits for a random time, or until a file is being written, since that takes only a small part of a run."""
    if rng.random() < 0.5:
        subject.wait(rng.uniform(0, seconds))
        return
    for _ in range(rng.randint(0, 4)):  # files before that one
        wait_until(lambda: temporary_files(subject.cwd) or subject.wait(0) is not None, seconds)
        wait_until(lambda: not temporary_files(subject.cwd) or subject.wait(0) is not None, seconds)
    wait_until(lambda: temporary_files(subject.cwd) or subject.wait(0) is not None, seconds)
    time.sleep(rng.uniform(0, 0.02))


def kill(rng: random.Random, subject: Subject) -> None:
    """kill -9 of the script alone or, as batch systems do, of its workers too."""
    subject.signal(signal.SIGKILL, [subject.pid] if rng.random() < 0.7 else [subject.pid, *subject.workers()])
    subject.wait(GRACE)


def kill_until_it_ends(
    rng: random.Random, start: Callable[[], Subject], wait: Callable[[Subject], object]
) -> tuple[list[str], list[str]]:
    """Starts a script again and again, and kills it after `wait`, except the last time. The kills, and the problems."""
    steps, problems, subjects = [], [], []
    for kills_left in reversed(range(MAX_KILLS + 1)):
        subject = start()
        subjects.append(subject)
        begun = time.perf_counter()
        if kills_left:
            wait(subject)
        status = subject.wait(0 if kills_left else 120)
        if status is not None:
            break
        kill(rng, subject)
        steps.append(f"kill -9 after {time.perf_counter() - begun:.2f} s")
        if rng.random() < 0.5:  # otherwise it is started again at once
            problems += subject.end()
    for subject in subjects:
        problems += subject.end()
    return steps, problems + ([f"status {status}: {subject.stderr[-300:]}"] if status != 0 else [])


@trials()
def test_training_that_is_killed_and_resumed_is_an_undisturbed_run(rng, commands, undisturbed, tally, tmp_path):
    script, workers = rng.choice(TRAININGS), rng.choice([0, 2])
    expected = undisturbed(script)

    def start() -> Subject:
        last = last_checkpoint(tmp_path)
        if last is None:
            shutil.rmtree(tmp_path / "logs", ignore_errors=True)
        flags = [*commands(script), f"--num_workers={workers}", *([f"--resume={last}"] if last else [])]
        return start_forked(script, flags, tmp_path)

    steps, problems = kill_until_it_ends(rng, start, lambda run: wait_for_a_moment(rng, run, 1.1 * expected.seconds))
    if not problems:
        problems += differences(last_checkpoint(tmp_path).parent, expected.folder)
        problems += [f"{name} is left in the finished run's folder" for name in temporary_files(tmp_path)[:1]]
    tally.add(f"{script} --num_workers={workers}, {', '.join(steps)}, resumed", problems, len(steps))
    tally.finish()


@trials()
def test_an_index_whose_writer_is_killed_and_that_is_appended_to_is_an_undisturbed_one(
    rng, commands, undisturbed, tally, tmp_path
):
    script, workers = rng.choice(["eval.py", "eval_hashing.py", "eval_rerank.py", "eval_rerank.py"]), rng.choice([0, 2])
    more = ["--infer_batch_size=1", "--save_index=index"]
    expected = undisturbed(script, *more, prelude=SMALL_CHUNKS)

    def start() -> Subject:
        append = ["--append"] if (tmp_path / "index" / "metadata.json").exists() else []
        flags = [*commands(script), *more, f"--num_workers={workers}", *append]
        return start_forked(script, flags, tmp_path, SMALL_CHUNKS)

    def wait(run: Subject) -> None:
        wait_until(lambda: (tmp_path / "index").exists() or run.wait(0) is not None, 60)
        run.wait(rng.uniform(0, 0.8 * expected.seconds))

    steps, problems = kill_until_it_ends(rng, start, wait)
    if not problems:
        files, expected_files = content(tmp_path / "index"), content(expected.cwd / "index")
        problems += [f"{name} is left in the finished index" for name in files if name.endswith(".tmp")]
        different = [name for name in expected_files if files.get(name) != expected_files[name]]
        problems += [f"{name} differs from an undisturbed index's" for name in different]
        if predictions_of(tmp_path) != predictions_of(expected.cwd):
            problems.append("predictions.csv differs from an undisturbed run's")
    tally.add(f"{script} --save_index --num_workers={workers}, {', '.join(steps)}, --append", problems, len(steps))
    tally.finish()


class Containers:
    """Starts scripts that write to one folder, each in a container: as process 1, and through either of two mounts."""

    def __init__(self, parent: Path, rng: random.Random) -> None:
        self.folder, self.mounts, self.rng = parent / "folder", [parent / "first", parent / "second"], rng
        for folder in (self.folder, *self.mounts):
            folder.mkdir()

    def start(self, script: str, flags: list[object], prelude: str = "", cwd: Path | None = None) -> Subject:
        """cwd: of what the script prints; the folder itself, unless two run at once."""
        container = CONTAINER.format(folder=self.folder, mount=self.rng.choice(self.mounts))
        return start_forked(script, flags, cwd or self.folder, container + prelude)


@pytest.fixture
def containers(rng, tmp_path) -> Containers:
    command = ["unshare", "--pid", "--mount", "--fork", "true"]
    if shutil.which("unshare") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("process numbers and mounts of a process's own are not allowed here")
    return Containers(tmp_path, rng)


@trials()
def test_training_killed_in_containers_and_resumed_is_an_undisturbed_run(rng, commands, undisturbed, tally, containers):
    script, workers, folder = rng.choice(TRAININGS), rng.choice([0, 2]), containers.folder
    expected = undisturbed(script, *TRAINING_OPTIONS)

    def start() -> Subject:
        last = last_checkpoint(folder)
        if last is None:
            shutil.rmtree(folder / "logs", ignore_errors=True)
        resume = [f"--resume={last.relative_to(folder)}"] if last else []
        return containers.start(script, [*commands(script), *TRAINING_OPTIONS, f"--num_workers={workers}", *resume])

    steps, problems = kill_until_it_ends(rng, start, lambda run: wait_for_a_moment(rng, run, 1.3 * expected.seconds))
    if not problems:
        problems += differences(last_checkpoint(folder).parent, expected.folder)
        problems += [f"{name} is left in the finished run's folder" for name in temporary_files(folder)[:1]]
    tally.add(f"{script} --num_workers={workers} in containers, {', '.join(steps)}, resumed", problems, len(steps))
    tally.finish()


@trials(fixed=1)
def test_an_index_whose_builder_is_killed_in_containers_is_an_undisturbed_one(
    rng, commands, undisturbed, tally, containers
):
    workers, folder = rng.choice([0, 2]), containers.folder
    expected = undisturbed("build_index.py", prelude=SMALL_CHUNKS)
    flags = [*commands("build_index.py"), f"--num_workers={workers}"]

    def wait(run: Subject) -> None:
        wait_until(lambda: (folder / "made").exists() or run.wait(0) is not None, 60)
        wait_for_a_moment(rng, run, 0.5 * expected.seconds)

    steps, problems = kill_until_it_ends(rng, lambda: containers.start("build_index.py", flags, SMALL_CHUNKS), wait)
    if not problems and content(folder / "made") != content(expected.cwd / "made"):
        problems.append("the index differs from an undisturbed one")
    problems += [f"{name} is left" for name in temporary_files(folder)[:1]]
    tally.add(f"build_index.py --num_workers={workers} in containers, {', '.join(steps)}", problems, len(steps))
    tally.finish()


@trials()
def test_an_export_that_is_killed_in_containers_can_be_repeated_beside_another(
    rng, index, checkpoints, undisturbed, tally, containers, tmp_path
):
    """The other one, which nobody disturbs, writes to the same folder meanwhile, to a name that begins alike."""
    kind, folder = rng.choice([*INDEX_EXPORTS, *MODEL_EXPORTS]), containers.folder
    source = f"--index={index}" if kind in INDEX_EXPORTS else f"--model={checkpoints['two_branch']}"
    more = {"pairs": ["--num_matched=3"], "onnx": ["--resize", 56, 56]}
    flags = [kind, source, *more.get(kind, [])]
    expected = undisturbed("export.py", *flags, "--output=exported", prelude=SLOW_WRITES)

    def start() -> Subject:
        output = folder / "exported"
        if output.exists():  # it was killed after it had finished
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        return containers.start("export.py", [*flags, "--output=exported"], SLOW_WRITES)

    def unfinished() -> list[str]:
        return [name for name in temporary_files(folder) if not name.startswith(".exported.too.")]

    def wait(run: Subject) -> None:
        wait_until(lambda: any(catches(pid, signal.SIGTERM) for pid in run.workers()) or run.wait(0) is not None, 60)
        if rng.random() < 0.5:
            run.wait(rng.uniform(0, expected.seconds))
        else:
            wait_until(lambda: unfinished() or run.wait(0) is not None, 120)
            time.sleep(rng.uniform(0, 0.02))

    slower = SLOW_WRITES.replace("0.01", "2")
    other = containers.start("export.py", [*flags, "--output=exported.too"], slower, tmp_path / "other")
    steps, problems = kill_until_it_ends(rng, start, wait)
    if other.wait(120) != 0:
        problems.append(f"the other export: status {other.wait(0)}: {other.stderr[-300:]}")
    problems += other.end()
    if not problems:
        outputs = [exported(folder / name, kind) for name in ("exported", "exported.too")]
        same = outputs == 2 * [exported(expected.cwd / "exported", kind)]
        problems += [] if same else ["other files than an undisturbed export's"]
    problems += [f"{name} is left" for name in temporary_files(folder)[:1]]
    tally.add(f"export.py {kind} in containers, {', '.join(steps)}", problems, len(steps))
    tally.finish()


def exported(path: Path, kind: str) -> object:
    """What an exported file or folder holds: {name: bytes}; of safetensors, whose package orders the header at random,
    the header's entries and the rest.
    """
    if kind == "safetensors":
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        return json.loads(data[8:start]), data[start:]
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {os.path.relpath(file, path): file.read_bytes() for file in files}
