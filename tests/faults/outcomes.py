"""Scripts that are disturbed, and in what their results differ from an undisturbed run's."""

from pathlib import Path

from helpers.trainings import metrics_of, outcome, same

from model import InputError

TRAININGS = ["train.py", "train_hashing.py", "train_rerank.py"]
EVALUATIONS = ["eval.py", "eval_hashing.py", "eval_rerank.py"]
REFUSALS = (InputError, OSError)  # with both, the scripts end with status 2
SLOW_WRITES = """
import os, time
fsync = os.fsync
os.fsync = lambda file: (time.sleep(0.01), fsync(file))
"""
SMALL_CHUNKS = f"""{SLOW_WRITES}
import sys
import utils.retrieval.evaluation, utils.retrieval.extraction
for name, module in list(sys.modules.items()):
    if name.startswith("utils.") and hasattr(module, "CHUNK_SIZE"):
        module.CHUNK_SIZE = 2
"""  # 8 chunks of the tiny benchmark, and time between the files of each


def differences(folder: Path, expected: Path) -> list[str]:
    """In what a run that was continued differs from one that nobody disturbed."""
    names = ["last_model.pth", "best_model.pth", "predictions.csv"]
    parts = zip(names, outcome(folder), outcome(expected), strict=True)
    problems = [f"{name} differs from an undisturbed run's" for name, left, right in parts if not same(left, right)]
    rows, expected_rows = metrics_of(folder), metrics_of(expected)
    for row in [*rows, *expected_rows]:
        row["seconds"] = row["peak_memory_mb"] = ""
    return problems + ["metrics.csv differs from an undisturbed run's"] * (rows != expected_rows)


def problems_of_an_end(status: int | None, errors: str) -> list[str]:
    """What is wrong with the end of a script that got odd input: it may run, or refuse it with a message."""
    if "Traceback" in errors or status not in (0, 2) or (status == 2 and "error: " not in errors):
        return [f"status {status}: {(errors.strip() or 'nothing on stderr').splitlines()[-1][:200]}"]
    return []


def last_checkpoint(cwd: Path) -> Path | None:
    return next(iter(cwd.glob("logs/*/*/last_model.pth")), None)
