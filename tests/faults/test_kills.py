"""kill -9 at random moments of training and indexing: what continues afterwards gives the files of one run."""

import random
import shutil
import signal
import time
from collections.abc import Callable

import pytest
from helpers.evaluations import predictions as predictions_of
from helpers.indexes import content
from outcomes import SMALL_CHUNKS, TRAININGS, differences, last_checkpoint
from processes import GRACE, Subject, start_forked, temporary_files, wait_until
from trials import trials

pytestmark = pytest.mark.slow

MAX_KILLS = 3  # of one run


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
