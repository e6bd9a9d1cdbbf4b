"""Evaluate a hashing-only SelaVPR++ model: Hamming search with its 512-bit codes, exact or (--ivf) approximate."""

from datasets.benchmark import Benchmark
from utils.cli.evaluation import FLOAT_FLAGS, HashingEvaluation, evaluate_datasets
from utils.cli.parser import parse
from utils.retrieval.evaluation import Pipeline
from utils.retrieval.report import Results
from utils.retrieval.search import search
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main


def main() -> None:
    evaluate_datasets(parse(HashingEvaluation, __doc__, refused=FLOAT_FLAGS), evaluate)


def evaluate(dataset: Benchmark, run: RunDir, pipeline: Pipeline) -> Results | None:
    """Searches one dataset and reports the results to the run's folder. Returns None on all but the main rank."""
    # ---- Codes of the database and of the queries
    features = pipeline.features(dataset, run)
    if features is None:  # only the main rank receives them
        return None
    database, queries = features

    # ---- Search by Hamming distance of the codes
    with run.phase("search"):
        results = search(database, queries, pipeline.k, device=pipeline.device)

    # ---- Recalls, predictions.csv, results.json, pictures, report.html
    return pipeline.report(dataset, run, database=database, stages={"Binary": results})


if __name__ == "__main__":
    cli_main(main)
