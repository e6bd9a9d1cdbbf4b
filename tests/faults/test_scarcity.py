"""Too few file descriptors, too little memory, workers that are killed, two runs at once: a message, and an end."""

import re
import shutil
import signal
import subprocess
import time

import pytest
from outcomes import EVALUATIONS, TRAININGS, differences
from processes import GRACE, Subject, python_command, start_command, start_forked, start_torchrun, wait_until
from trials import TRIALS, log_uniform, trials

pytestmark = pytest.mark.slow

SCRIPTS = [*TRAININGS, *EVALUATIONS]
LARGE_IMAGES = ["--resize", 224, 224, "--infer_batch_size=8"]  # which do not fit into 1 MB of shared memory
# PyTorch's DataLoader, when it is finalised half made, which Python reports beside the error.
UNFINISHED_LOADER = re.compile(
    r"Exception ignored in: <function _MultiProcessingDataLoaderIter.*?\nAttributeError: .*?\n", re.S
)
SMALL_SHM = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
FEW_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))"
LITTLE_MEMORY = """
import resource
fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
most = int(fields["{field}"].split()[0]) * 1024 + {more}
resource.setrlimit(resource.{limit}, (most, most))
"""


def problems_at_the_end(subject: Subject, seconds: float) -> list[str]:
    """After a script got too little of something: it may have ended well all the same."""
    problems = subject.end(seconds)
    status = subject.wait(0)
    if problems or status == 0:
        return problems
    last = (subject.stderr.strip() or "nothing on stderr").splitlines()[-1][:200]
    if status not in (1, 2):
        problems.append(f"status {status}: {last}")
    elif "error: " not in subject.stderr or "Traceback" in UNFINISHED_LOADER.sub("", subject.stderr):
        problems.append(f"status {status}, no message but: {last}")
    return problems


@trials()
def test_few_file_descriptors(rng, commands, tally, tmp_path):
    script, workers, limit = rng.choice(SCRIPTS), rng.choice([0, 2, 4]), log_uniform(rng, 8, 128)
    subject = start_forked(script, [*commands(script), f"--num_workers={workers}"], tmp_path, FEW_FILES.format(limit))
    problems = problems_at_the_end(subject, 30)
    tally.add(f"{script} --num_workers={workers}, at most {limit} open files", problems)
    tally.finish()


@trials()
def test_little_memory(rng, commands, tally, tmp_path):
    script, workers, more = rng.choice(SCRIPTS), rng.choice([0, 2]), log_uniform(rng, 3e7, 1e9)
    limit, field = rng.choice([("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
    prelude = LITTLE_MEMORY.format(limit=limit, field=field, more=more)
    subject = start_forked(script, [*commands(script), f"--num_workers={workers}"], tmp_path, prelude)
    problems = problems_at_the_end(subject, 30)
    tally.add(
        f"{script} --num_workers={workers}, {limit} {more / 1e6:.1f} MB above what is used at the start", problems
    )
    tally.finish()


@pytest.fixture(scope="module")
def unshare() -> str:
    """A command that mounts file systems for one process alone."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting for one process alone is not allowed here")
    return "unshare"


@trials(-(-TRIALS // 4))
def test_little_shared_memory(rng, commands, unshare, tally, tmp_path):
    script, workers = rng.choice(SCRIPTS), rng.choice([1, 2])
    large = LARGE_IMAGES if script in EVALUATIONS else [*LARGE_IMAGES, "--image_size", 224, 224]
    command = python_command(script, [*commands(script), *large, f"--num_workers={workers}"])
    subject = start_command([unshare, "-m", "sh", "-c", SMALL_SHM, "sh", *command], tmp_path)
    problems = problems_at_the_end(subject, 45)
    tally.add(f"{script} {' '.join(map(str, large))} --num_workers={workers}, 1 MB of /dev/shm", problems)
    tally.finish()


@trials()
def test_a_killed_worker_ends_the_script_with_a_message(rng, commands, undisturbed, tally, tmp_path):
    script = rng.choice(SCRIPTS)
    subject = start_forked(script, [*commands(script), "--num_workers=2"], tmp_path)
    wait_until(lambda: subject.workers() or subject.wait(0) is not None, 60)
    subject.wait(rng.uniform(0, 0.7 if script in TRAININGS else 0.2) * undisturbed(script).seconds)
    wait_until(lambda: subject.workers() or subject.wait(0) is not None, 60)
    victims = subject.workers()
    if victims and subject.wait(0) is None:
        subject.signal(signal.SIGKILL, [rng.choice(victims)])
        tally.add(f"{script} --num_workers=2: kill -9 of a worker", problems_at_the_end(subject, GRACE))
    subject.end(0)
    tally.finish()


@pytest.mark.distributed
@trials(-(-TRIALS // 4))
def test_two_ranks_end_with_a_message_when_a_process_of_theirs_is_killed(rng, commands, tally, tmp_path):
    script = rng.choice(["train.py", "eval_rerank.py"])
    subject = start_torchrun(script, [*commands(script), "--num_workers=2", *LARGE_IMAGES], tmp_path)
    wait_until(lambda: "Extracting" in subject.stderr or "Epoch" in subject.stderr or subject.wait(0) is not None, 60)
    subject.wait(rng.uniform(0, 1.5))
    kind = rng.choice(["rank", "worker"])
    ranks = subject.ranks()
    victims = ranks if kind == "rank" else [pid for pid in subject.workers() if pid not in ranks]
    if victims and subject.wait(0) is None:
        subject.signal(signal.SIGKILL, [rng.choice(victims)])
        problems = subject.end()
        if not problems and subject.wait(0) == 0:
            problems += ["status 0"] * (kind == "rank")  # a worker may have had nothing left to do
        elif kind == "worker" and "error: " not in subject.stderr:
            problems.append("no message")
        tally.add(f"torchrun {script} --num_workers=2: kill -9 of a {kind}", problems)
    subject.end(0)
    tally.finish()


@trials(-(-TRIALS // 4))
def test_one_of_two_processes_that_resume_a_run_is_refused(rng, commands, undisturbed, tally, tmp_path):
    script = rng.choice(TRAININGS)
    shutil.copytree(undisturbed(script, "--epochs_num=1").folder, tmp_path / "run")
    flags = [*commands(script), f"--resume={tmp_path / 'run' / 'last_model.pth'}"]
    delay = rng.choice([0, rng.uniform(0, 1)])
    first = start_forked(script, flags, tmp_path / "first")
    time.sleep(delay)
    second = start_forked(script, flags, tmp_path / "second")
    problems = first.end(60) + second.end(60)
    statuses = sorted([first.wait(0), second.wait(0)])
    if statuses != [0, 2]:
        problems.append(f"the statuses are {statuses}")
    elif any("Traceback" in subject.stderr for subject in (first, second)):
        problems.append("a traceback")
    if 0 in statuses:
        problems += differences(tmp_path / "run", undisturbed(script).folder)
    tally.add(f"{script}: the same --resume twice, the second {delay:.2f} s later", problems)
    tally.finish()
