"""How scripts end when something goes wrong: soon, with a message and the right status, and nothing left."""

import contextlib
import errno
import fcntl
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers.evaluations import flags_for
from helpers.models import build
from helpers.processes import ROOT, run_here, run_python, run_script, run_two_ranks
from helpers.trainings import flags_for as flags_for_training
from helpers.trainings import metrics_of, the_folder
from torch.utils.data import DataLoader

from model import InputError
from model.files import remove_leftovers, temporary_path
from model.saving import lock_folder
from model.weights import model_content
from utils.runtime.atomic_files import atomic_folder, atomic_write, check_output, save_tensors
from utils.runtime.run_dir import RunDir
from utils.runtime.signals import Stopped, stop_signals
from utils.runtime.terminal import printable
from utils.runtime.workers import start_worker
from utils.training.checkpoints import open_run, read_run_checkpoint

pytestmark = pytest.mark.slow
LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, 524)


def refuse_locks(number):
    """In place of flock, on a file system without locks."""

    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    return flock


BROKEN = """
import os, runpy, signal, sys
import datasets.images

def broken(*arguments, **options):
    {action}

datasets.images.load_image = broken
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("action", "workers", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 2, "A process that reads images died"),
        ("raise RuntimeError('broken')", 2, "error: A process that reads images failed: RuntimeError: broken"),
        ("raise RuntimeError('broken')", 0, "RuntimeError: broken"),
        ("raise MemoryError('too large')", 0, "Out of memory. Use a smaller batch"),
    ],
)
def test_any_error_ends_the_script_within_seconds(tiny_benchmark, checkpoints, tmp_path, action, workers, words):
    flags = flags_for(tiny_benchmark, checkpoints["float"], f"--num_workers={workers}")
    script = tmp_path / "broken.py"
    script.write_text(BROKEN.format(action=action))
    result = run_script(script, ROOT / "eval.py", *flags, cwd=tmp_path, timeout=30)
    (log,) = tmp_path.glob("logs/*/*/log.txt")
    *_, error, where = (line for line in result.stderr.splitlines() if line)
    assert result.status == 1 and words in result.stderr, result.stderr
    assert where == f"The traceback is in {log.relative_to(tmp_path)}."
    assert "Traceback" in log.read_text()


def run_code(code, cwd):
    """Runs a script of this code."""
    (cwd / "script.py").write_text(code)
    return run_script(cwd / "script.py", cwd=cwd)


def test_an_error_before_a_run_has_a_log_shows_its_traceback(tmp_path):
    result = run_code("from utils.runtime.script import cli_main\ncli_main(lambda: 1 / 0)", tmp_path)
    assert result.status == 1 and "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: ZeroDivisionError: division by zero"


def test_an_error_after_a_deferred_signal_is_reported(tmp_path):
    code = """
import os, signal
from utils.runtime.script import cli_main
from utils.runtime.signals import stop_signals

def main():
    stop_signals.defer()
    os.kill(os.getpid(), signal.SIGTERM)
    raise RuntimeError("the step failed")

cli_main(main)
"""
    result = run_code(code, tmp_path)
    assert (result.status, result.stderr.splitlines()[-1]) == (1, "error: RuntimeError: the step failed")


@pytest.mark.parametrize("then", ["pass", "raise ImportError('initialization failed') from None"])
def test_a_signal_that_a_library_swallowed_stops_the_script(tmp_path, then):
    code = f"""
import os, signal
from utils.runtime.script import cli_main

def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        pass
    {then}

cli_main(main, when_stopped="go on")
"""
    result = run_code(code, tmp_path)
    assert (result.status, result.stderr) == (143, "interrupted; go on\n")


def test_a_finalizer_that_fails_after_a_stop_signal_says_nothing(tmp_path):
    """As DataLoader's does where it is interrupted: nothing can be done, and the signal has been reported."""
    code = """
import os, signal, sys, threading
from utils.runtime.script import cli_main

class Fails:
    def __del__(self):
        assert False, "a finalizer"

def fail():
    assert False, "a thread"

def main():
    Fails()  # before the signal, it is printed
    kept = Fails()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

cli_main(main)
"""
    result = run_python(code, cwd=tmp_path)
    assert result.status == 143 and result.stderr.count("a finalizer") == 1 and "a thread" not in result.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import tempfile; tempfile.tempdir = None; os.getcwd = tempfile._candidate_tempdir_list = list; "
            "tempfile.gettempdir()",
            "No usable temporary directory found",
        ),
        (
            "from multiprocessing import synchronize; synchronize._multiprocessing.SemLock = refuse; "
            "import multiprocessing; multiprocessing.Lock()",
            "Mount /dev/shm",
        ),
    ],
)
def test_what_a_bare_container_lacks_is_named(tmp_path, code, words):
    """No temporary folder that can be written; no shared memory."""
    prelude = f"""
import os
from utils.runtime.script import cli_main

def refuse(*_):
    raise OSError(38, "Function not implemented")

def main():
    {code}

cli_main(main)
"""
    result = run_python(prelude, cwd=tmp_path)
    assert result.status == 2 and words in result.stderr and "Traceback" not in result.stderr, result.stderr


class Unsendable:
    """A batch that cannot be sent, as where shared memory or threads run out."""

    def __reduce__(self):
        raise RuntimeError("can't start new thread")


def test_a_batch_that_cannot_be_sent_is_an_error(capfd):
    """Python drops such a batch, and the main process would wait for it forever."""
    loader = DataLoader(
        [0], num_workers=1, collate_fn=lambda batch: Unsendable(), worker_init_fn=start_worker, timeout=30
    )
    with pytest.raises(RuntimeError, match="DataLoader worker .pid"):
        next(iter(loader))
    message = "A process that reads images cannot send a batch: RuntimeError: can't start new thread"
    assert message in capfd.readouterr().err


NO_SHARED_DISK = """
import os, time
if os.environ["RANK"] == "1":
    import datasets.benchmark, datasets.gsv_cities, model.weights, utils.runtime.run_dir, utils.training.checkpoints
    def forbidden(*arguments, **options):
        raise AssertionError("this rank has no such file")
    datasets.benchmark.list_images = datasets.gsv_cities._read_city = forbidden
    model.weights.read_checkpoint = utils.training.checkpoints.read_checkpoint = forbidden
    utils.training.checkpoints.save_tensors = utils.runtime.run_dir._new_folder = forbidden
    time.sleep(1)
"""
FAILS = """
import os, runpy, sys
import utils.training.step

def broken(*arguments):
    raise RuntimeError("broken")

if os.environ["RANK"] == "1":
    utils.training.step.TrainingStep.__call__ = broken
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def training_flags(city, foundation):
    size = ["--image_size", 56, 56, "--resize", 56, 56, "--train_batch_size=4"]
    return flags_for_training(city, f"--foundation_model_path={foundation}", "--num_workers=0", "--epochs_num=1", *size)


@pytest.mark.distributed
def test_a_late_rank_that_sees_no_file_but_the_images_trains_and_resumes(city, foundation, tmp_path):
    flags = training_flags(city, foundation)
    for result in run_two_ranks("train.py", *flags, cwd=tmp_path, prelude=NO_SHARED_DISK):
        assert result.status == 0, result.stderr
    folder = the_folder(tmp_path)
    last = folder / "last_model.pth"
    more = ["--epochs_num=2", f"--resume={last}"]
    main, other = run_two_ranks("train.py", *flags, *more, cwd=tmp_path, prelude=NO_SHARED_DISK)
    assert (main.status, other.status) == (0, 0), main.stderr + other.stderr
    assert "Resuming at epoch 2, batch 1" in main.stdout
    assert [row["epoch"] for row in metrics_of(folder)] == ["1", "2"]

    result = run_script("train.py", *flags, "--epochs_num=3", f"--resume={last}", cwd=tmp_path)
    assert result.status == 2
    assert "belongs to a run with 2 processes and cannot be resumed with 1" in result.stderr


@pytest.mark.distributed
def test_a_rank_that_fails_ends_the_others(city, foundation, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    main, other = run_two_ranks(script, ROOT / "train.py", *training_flags(city, foundation), cwd=tmp_path)
    assert "error: rank 1: RuntimeError: broken" in other.stderr and (main.status, other.status) == (1, 1)


def test_a_stop_signal_while_a_file_is_written_waits_for_its_end(tmp_path):
    class Slow:
        """A value that PyTorch writes while a signal arrives."""

        def __reduce__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            return OrderedDict, ()

    handler = signal.getsignal(signal.SIGTERM)
    stop_signals.install()
    try:
        with pytest.raises(Stopped):
            save_tensors(tmp_path / "model.pth", {"weights": torch.ones(1000), "slow": Slow()})
    finally:
        stop_signals.received = None
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.signal(signal.SIGTERM, handler)
    assert torch.equal(torch.load(tmp_path / "model.pth", weights_only=True)["weights"], torch.ones(1000))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("room", [0, 3000, 300_000])
def test_a_full_disk_is_named(tmp_path, monkeypatch, room):
    """Wherever PyTorch is when it is full: it reports an error of its own after the first record."""

    class SmallDisk(io.BytesIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr("builtins.open", lambda path, mode, **options: SmallDisk())
    with pytest.raises(InputError, match="Cannot write .*model.pth: No space left on device"):
        save_tensors(tmp_path / "model.pth", {"weights": torch.ones(100_000)})


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path, caplog):
    kept = [".lock", ".hidden", "notes.tmp", ".metrics.csv.tmp", "best_model.pth"]
    left = [".best_model.pth.4711.tmp", temporary_path(tmp_path / "curves.png").name]
    for name in [*kept, *left]:
        (tmp_path / name).write_bytes(bytes(300_000))
    with caplog.at_level("INFO"):
        remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    assert len(caplog.messages) == 2
    assert f"Removing {tmp_path / '.best_model.pth.4711.tmp'} (0.3 MB)" in "".join(caplog.messages)


def test_a_run_that_goes_on_removes_leftovers(tmp_path):
    (tmp_path / ".last_model.pth.99999.tmp").touch()
    RunDir("train", {}, folder=tmp_path, resumable=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "log.txt"]


@pytest.mark.parametrize("number", LOCKLESS)
def test_without_locks_only_what_is_old_is_a_leftover(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refuse_locks(number))
    old, new = (temporary_path(tmp_path / name) for name in ("old", "new"))
    for path in (old, new):
        path.mkdir()
    os.utime(old, (time.time() - 90_000, time.time() - 90_000))
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [new]
    with atomic_write(tmp_path / "results.json") as file:
        file.write("{}")
    assert (tmp_path / "results.json").read_text() == "{}"


def test_what_a_live_process_writes_is_no_leftover_and_what_a_killed_one_wrote_goes(tmp_path):
    """Processes of one number on two machines, or in two containers, tell each other apart by the lock."""

    def write(kind, connection):
        with kind(tmp_path / "result") as file:
            connection.send(getattr(file, "name", "") and True)
            time.sleep(60)

    for kind in (atomic_write, atomic_folder):
        receiver, sender = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=write, args=(kind, sender))
        process.start()
        receiver.recv()
        (temporary,) = tmp_path.iterdir()
        remove_leftovers(tmp_path)
        with kind(tmp_path / "result"):
            assert temporary in tmp_path.iterdir()
        process.kill()
        process.join()
        assert temporary.exists()
        (tmp_path / "result").unlink() if kind is atomic_write else (tmp_path / "result").rmdir()
        with kind(tmp_path / "result"):
            assert not temporary.exists()
        (tmp_path / "result").unlink() if kind is atomic_write else (tmp_path / "result").rmdir()
        assert not list(tmp_path.iterdir())


def test_a_forked_process_does_not_keep_the_temporary_folder_of_a_killed_one(tmp_path):
    """A process that draws images ends up to a second after the one that is killed."""

    def make(connection):
        with atomic_folder(tmp_path / "city"):
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            child.start()
            connection.send(child.pid)
            time.sleep(60)

    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=make, args=(sender,))
    process.start()
    child = receiver.recv()
    try:
        process.kill()
        process.join()
        remove_leftovers(tmp_path)
        assert not list(tmp_path.iterdir())
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "device", "folder"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    path, target = tmp_path / "results.json", tmp_path / "target"
    if kind == "link":
        target.write_text("mine")
    if "link" in kind:
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/null")
    name = kind.split()[-1].replace("link", "symbolic link")
    with pytest.raises(InputError, match=f"{path} is a {name}"), atomic_write(path) as file:
        file.write("ours")
    if kind == "link":
        assert target.read_text() == "mine" and path.is_symlink()
    assert not target.exists() or kind == "link"


@pytest.mark.parametrize("kind", ["file", "link", "device", "folder", "nowhere"])
def test_an_output_goes_over_nothing_that_was_not_named(tmp_path, kind):
    path = tmp_path / "output"
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to(tmp_path / "target")
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/null") if kind == "device" else tmp_path / "missing" / "output"
    words = f"No folder {path.parent}" if kind == "nowhere" else f"{path} exists already.*--overwrite"
    with pytest.raises(InputError, match=words):
        check_output(path, overwrite=False)
    if kind == "file":
        check_output(path, overwrite=True)
    else:
        with pytest.raises(InputError, match=words if kind == "nowhere" else f"is a .*{kind}. Expected a regular file"):
            check_output(path, overwrite=True)
    check_output(tmp_path / "new", overwrite=False)


def test_a_new_file_replaces_none(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links")

    for _ in range(2):
        with atomic_write(tmp_path / "new", new=True) as file:
            file.write("first")
        with pytest.raises(InputError, match="new exists already"), atomic_write(tmp_path / "new", new=True) as file:
            file.write("second")
        assert (tmp_path / "new").read_text() == "first"
        assert list(tmp_path.iterdir()) == [tmp_path / "new"]
        (tmp_path / "new").unlink()
        monkeypatch.setattr(os, "link", refuse)


def test_names_as_long_as_names_may_be(tmp_path):
    name = "é" * 127
    with atomic_write(tmp_path / name) as file:
        file.write("long")
    assert (tmp_path / name).read_text() == "long"


def test_a_folder_is_removed_although_a_thread_still_writes_to_it(tmp_path, monkeypatch):
    """As one does that was being started when a signal came: nothing waits for it."""
    rmdir = os.rmdir

    def write_first(path, **options):
        with contextlib.suppress(FileNotFoundError):
            (folder / "late.jpg").touch()
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", write_first)
    with pytest.raises(Stopped), atomic_folder(tmp_path / "city") as folder:
        (folder / "first.jpg").touch()
        raise Stopped(signal.SIGTERM)
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_continued_meanwhile_is_not_continued_from_an_old_checkpoint(tmp_path):
    """As if another process had held the lock since the checkpoint was read, and gone on."""
    last = tmp_path / "last_model.pth"
    torch.save(model_content(build("vit-tiny")) | {"train_state": {}}, last)
    with pytest.raises(InputError, match="no best_model.pth beside .*last_model.pth"):
        read_run_checkpoint(last)
    shutil.copy(last, tmp_path / "best_model.pth")
    checkpoint = read_run_checkpoint(last)
    open_run("train", {}, checkpoint)._lock.release()
    os.utime(last)
    with pytest.raises(InputError, match="Another process has continued the run of .*last_model.pth. Repeat"):
        open_run("train", {}, checkpoint)


HOLDER = """
import sys, time
from pathlib import Path
from model.saving import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_a_run_that_another_process_continues_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("model.saving.LOCK_SECONDS", 0.2)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == b"locked\n"
            with pytest.raises(InputError, match="Another process is writing to .*Wait for it to finish, or stop it"):
                RunDir("train", {}, folder=tmp_path, resumable=True)
            assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]  # not even the log was touched
            with pytest.raises(InputError, match="Another process is writing to"):
                lock_folder(tmp_path)
        finally:
            holder.kill()
    lock_folder(tmp_path).release()  # the lock of a killed process is free


@pytest.mark.parametrize("number", LOCKLESS)
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(fcntl, "flock", refuse_locks(number))
    lock_folder(tmp_path).release()
    assert f"The file system of {tmp_path} has no locks" in caplog.text
    monkeypatch.setenv("SELAVPR_REQUIRE_LOCKS", "1")
    with pytest.raises(InputError, match="has no locks.*Choose a folder on another disk"):
        lock_folder(tmp_path)


def test_a_lock_that_is_a_link_empties_nothing(tmp_path):
    (tmp_path / "diary").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "diary")
    with pytest.raises(InputError, match="[.]lock is a symbolic link"):
        lock_folder(tmp_path)
    assert (tmp_path / "diary").read_text() == "mine"


def test_a_log_that_is_a_link_is_not_written(tmp_path):
    """As in the folder of a run that came from a stranger."""
    run, target = tmp_path / "run", tmp_path / ".bashrc"
    run.mkdir()
    target.write_text("mine\n")
    (run / "log.txt").symlink_to(target)
    with pytest.raises(InputError, match="log.txt is a symbolic link"):
        RunDir("train", {}, folder=run, resumable=True)
    assert target.read_text() == "mine\n"


def test_a_new_run_removes_the_leftovers_of_killed_ones_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("killed", "other"):
        (tmp_path / "logs/train" / name).mkdir(parents=True)
        temporary_path(tmp_path / "logs/train" / name / "last_model.pth").touch()
    (tmp_path / "logs/train/killed/log.txt").touch()
    RunDir("train", {}, resumable=True)
    assert [path.name for path in (tmp_path / "logs/train/killed").iterdir()] == ["log.txt"]
    assert len(list((tmp_path / "logs/train/other").iterdir())) == 1  # not a run


# ---- The terminal


def test_printable_text():
    for text in ("Größe\n\tok é 日本", "東京\u3000駅", "a\u00a0b", "می\u200cخواهم"):
        assert printable(text) == text
    assert printable("\u202egpj.exe") == "\\u202egpj.exe"  # shown from right to left
    assert printable("\x1b[2J\x07\r\x9b") == "\\x1b[2J\\x07\\r\\x9b"
    assert printable(os.fsdecode(b"caf\xe9.jpg")) == "caf\\udce9.jpg"


def test_names_that_a_terminal_cannot_show_do_not_end_a_run(tiny_benchmark, checkpoints, tmp_path):
    """Bytes that are not UTF-8 and an escape sequence in names, on a terminal that knows ASCII only."""
    for folder in ("database", "queries"):
        target = tmp_path / "data" / "odd" / "images" / "test" / folder
        target.mkdir(parents=True)
        for path in (tiny_benchmark / "tiny/images/test" / folder).iterdir():
            name = os.fsencode(path.name.removesuffix(".jpg")) + b"caf\xe9\x1b[31m@.jpg"
            (target / os.fsdecode(name)).write_bytes(path.read_bytes())
    flags = [f"--datasets_folder={tmp_path / 'data'}", "--dataset_name=odd"]
    index = tmp_path / "index"
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    code = "import runpy, sys; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    flags = [*flags_for(tiny_benchmark, checkpoints["hashing"], *flags), f"--save_index={index}"]
    result = run_python(code, ROOT / "eval_hashing.py", *flags, cwd=tmp_path, env=environment)
    assert result.status == 0, result.stderr
    query = min((tmp_path / "data/odd/images/test/queries").iterdir())
    flags = [f"--index={index}", "--device=cpu", f"--save_pictures={tmp_path / 'found'}"]
    result = run_script("search.py", query, *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert "\x1b" not in result.stdout and "caf\\udce9\\x1b[31m@" in result.stdout


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        (f"--infer_batch_size={10**26}", "a whole number from 1 to 2147483647"),
        (f"--seed={10**26}", "a whole number from 0 to 2147483647"),
        ("--seed=-1", "a whole number from 0 to 2147483647"),
        ("--seed=" + "9" * 5000, "a whole number from 0 to 2147483647"),
        ("--infer_batch_size=0", "a whole number from 1 to 2147483647"),
        ("--val_positive_dist_threshold=1e999", "a number above 0"),
        ("--val_positive_dist_threshold=nan", "a number above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(tiny_benchmark, checkpoints, tmp_path, flag, expected):
    result = run_here("eval.py", *flags_for(tiny_benchmark, checkpoints["float"], flag), cwd=tmp_path)
    assert result.status == 2 and f"is not {expected}." in result.stderr and "Traceback" not in result.stderr
