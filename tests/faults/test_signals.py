"""Stop signals at random moments of every script: exit status, nothing left behind, training that can be resumed."""

import random
import re
import signal
import time

import pytest
from helpers.processes import ROOT, run_script
from helpers.trainings import load
from helpers.unified_sources import contents
from outcomes import EVALUATIONS, TRAININGS, differences, last_checkpoint
from processes import (
    Subject,
    catches,
    ignores,
    python_command,
    start_command,
    start_forked,
    start_torchrun,
    temporary_files,
    wait_until,
)
from trials import TRIALS, trials

pytestmark = pytest.mark.slow

STATUS = {signal.SIGINT: 130, **dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1), 143)}
OTHERS = ["search.py", "build_index.py", "datasets.synthetic", "datasets.unified"]
END_OF_INTERPRETER = 2.0  # seconds in which a script that had finished its work may still end with status 0


def stop(rng: random.Random, subject: Subject, number: int) -> tuple[str, list[str]]:
    """Sends a signal to the script or, as a terminal does, to all its processes. What was done; the problems."""
    early, whole_group = not subject.started(), rng.random() < 0.5
    subject.signal(number, [subject.pid] if not whole_group else [*subject.workers(), subject.pid])
    has_finished = ignores(subject.pid, number) or subject.wait(0) is not None  # it had no work left
    problems = subject.end()
    status = subject.wait(0)
    expected = {STATUS[number]} | ({0} if has_finished else set())
    if early:  # SIGINT: Python raises KeyboardInterrupt while it imports
        expected |= {-number, 1} if number == signal.SIGINT else {-number}
    if not problems and status not in expected:
        problems.append(f"status {status} after {signal.Signals(number).name} instead of {STATUS[number]}")
    if not early and "Traceback" in subject.stdout + subject.stderr:
        problems.append(f"a traceback: {(subject.stderr.strip() or subject.stdout.strip()).splitlines()[-1][:200]}")
    problems += [f"left {name}" for name in temporary_files(subject.cwd)[:1]]
    target = "all its processes" if whole_group else "it alone"
    return f"{signal.Signals(number).name} to {target}{' while it started' if early else ''}", problems


def wait_for_a_moment(rng: random.Random, subject: Subject, seconds: float) -> float:
    """Waits for a random moment of a script that takes so many seconds. When it came, in seconds."""
    start = time.perf_counter()
    if rng.random() < 0.95:  # otherwise also while the interpreter starts
        subject.wait_for_start()
    subject.wait(rng.uniform(0, seconds))
    return time.perf_counter() - start


def try_to_stop(rng, script, commands, undisturbed, tally, cwd) -> tuple[int | None, list[object]]:
    """One script, one signal. The exit status, and the flags of the script."""
    number, workers, cold = rng.choice(list(STATUS)), rng.choice([0, 2]), rng.random() < 0.3
    more = [f"--num_workers={workers}"] if script in [*TRAININGS, *EVALUATIONS] else []
    flags = [*commands(script), *more]
    seconds = undisturbed(script).seconds * (1.3 if cold else 1)  # it also imports libraries as it goes
    subject = start_command(python_command(script, flags), cwd) if cold else start_forked(script, flags, cwd)
    moment = wait_for_a_moment(rng, subject, seconds)
    if subject.wait(0) is not None:
        assert subject.wait(0) == 0, subject.stderr
        return 0, flags
    fault, problems = stop(rng, subject, number)
    last = last_checkpoint(cwd)
    if last and subject.wait(0) and f"Resume with --resume={last.relative_to(cwd)}" not in subject.stdout:
        problems.append("no line 'Resume with', though last_model.pth exists")
    way = "a fresh interpreter" if cold else "a forked process"
    tally.add(f"{script} {' '.join(more)} in {way}: after {moment:.2f} s {fault}", problems)
    return subject.wait(0), flags


@trials()
def test_training_stops_at_a_signal_and_resumes_as_if_nothing_had_happened(rng, commands, undisturbed, tally, tmp_path):
    script = rng.choice(TRAININGS)
    status, flags = try_to_stop(rng, script, commands, undisturbed, tally, tmp_path)
    last = last_checkpoint(tmp_path)
    if status and last and rng.random() < 0.5:
        result = run_script(script, *flags, f"--resume={last}", cwd=tmp_path)
        problems = [f"resuming: status {result.status}: {result.stderr[-200:]}"] if result.status else []
        tally.add(f"{script} stopped and resumed", problems or differences(last.parent, undisturbed(script).folder))
    tally.finish()


@trials(fixed=1)
def test_an_evaluation_stops_at_a_signal_and_leaves_nothing_behind(rng, commands, undisturbed, tally, tmp_path):
    try_to_stop(rng, rng.choice(EVALUATIONS), commands, undisturbed, tally, tmp_path)
    tally.finish()


@trials(4 * TRIALS, fixed=1)
def test_an_evaluation_stops_while_its_workers_start_or_end(rng, commands, undisturbed, tally, tmp_path):
    """In these moments, tenths of a second each, DataLoader is half made or half finalised."""
    script, number = rng.choice(EVALUATIONS), rng.choice([signal.SIGINT, signal.SIGTERM])
    flags = [*commands(script), "--num_workers=2"]
    seconds, cold = undisturbed(script, "--num_workers=2").seconds, rng.random() < 0.3
    start = time.perf_counter()
    subject = start_command(python_command(script, flags), tmp_path) if cold else start_forked(script, flags, tmp_path)
    subject.wait_for_start()
    moment = rng.choice(["the start", "the workers' start", "the workers' end", "the end"])
    for _ in range(rng.randint(1, 2) if "workers" in moment else 0):  # the database's, the queries'
        wait_until(lambda: not subject.workers() or subject.wait(0) is not None, 60)
        wait_until(lambda: subject.workers() or subject.wait(0) is not None, 60)
    if moment == "the workers' end":
        wait_until(lambda: not subject.workers() or subject.wait(0) is not None, 60)
    if moment == "the end":
        subject.wait(seconds - rng.uniform(0, 0.3))
    else:
        subject.wait(rng.uniform(0, 0.3 if moment == "the start" else 0.1))
    if subject.wait(0) is None:
        passed = time.perf_counter() - start
        fault, problems = stop(rng, subject, number)
        way = "a fresh interpreter" if cold else "a forked process"
        tally.add(f"{script} --num_workers=2 in {way}: at {moment}, after {passed:.2f} s, {fault}", problems)
    tally.finish()


@trials()
def test_search_and_builders_stop_at_a_signal_and_continue(rng, commands, undisturbed, tally, tmp_path):
    script = rng.choice(OTHERS)
    status, flags = try_to_stop(rng, script, commands, undisturbed, tally, tmp_path)
    if status and script != "search.py":
        result = run_script(script, *flags, cwd=tmp_path)
        same = not result.status and contents(tmp_path / "made") == contents(undisturbed(script).cwd / "made")
        problem = f"the same command afterwards: status {result.status}, or other files: {result.stderr[-200:]}"
        tally.add(f"{script} stopped and run again", [] if same else [problem])
    tally.finish()


@pytest.mark.distributed
@trials(-(-TRIALS // 4))
def test_two_ranks_stop_at_a_signal(rng, commands, seconds_of_two_ranks, tally, tmp_path):
    """torchrun has no handler for SIGUSR1, which SLURM sends to the ranks themselves."""
    script, number, workers = rng.choice(["train.py", "eval_rerank.py"]), rng.choice(list(STATUS)), rng.choice([0, 2])
    subject = start_torchrun(script, [*commands(script), f"--num_workers={workers}"], tmp_path)
    start = time.perf_counter()
    wait_until(lambda: subject.ranks() or subject.wait(0) is not None, 60)
    subject.wait(rng.uniform(0, seconds_of_two_ranks * (0.9 if script == "train.py" else 0.6)))
    moment = time.perf_counter() - start
    targets = subject.ranks() if number == signal.SIGUSR1 else [subject.pid]
    running = subject.wait(0) is None
    early = not all(catches(pid, signal.SIGTERM) for pid in subject.ranks())  # Python still imports
    subject.signal(number, targets)
    sent = time.perf_counter()
    problems = subject.end()
    status, seconds = subject.wait(0), time.perf_counter() - sent
    if running and status == 0 and seconds > END_OF_INTERPRETER:
        problems.append(f"status 0, {seconds:.1f} s after {signal.Signals(number).name}")
    problems += [f"left {name}" for name in temporary_files(tmp_path)[:1]]
    if not early and re.search(rf'File "{re.escape(str(ROOT))}/(?!\.venv)', subject.stderr):
        lines = [line for line in subject.stderr.splitlines() if "Error" in line or "Interrupt" in line]
        problems.append(f"a traceback of a rank: {lines[-1][:200] if lines else ''}")
    last = last_checkpoint(tmp_path)
    if last is not None and load(last)["train_state"]["step"] == 0:
        problems.append("last_model.pth holds no step")
    target = "the ranks" if number == signal.SIGUSR1 else "torchrun"
    tally.add(
        f"torchrun {script} --num_workers={workers}: after {moment:.2f} s {signal.Signals(number).name} to {target}",
        problems,
    )
    tally.finish()
