"""Evaluate a float SelaVPR++ model: exact L2 search with its descriptors."""

from datasets.benchmark import Benchmark
from utils.cli.evaluation import FloatEvaluation, evaluate_datasets
from utils.cli.parser import parse
from utils.retrieval.evaluation import Pipeline
from utils.retrieval.report import Results
from utils.retrieval.search import search
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main


def main() -> None:
    evaluate_datasets(parse(FloatEvaluation, __doc__), evaluate)


def evaluate(dataset: Benchmark, run: RunDir, pipeline: Pipeline) -> Results | None:
    """Searches one dataset and reports the results to the run's folder. Returns None on all but the main rank."""
    # ---- Descriptors of the database and of the queries
    features = pipeline.features(dataset, run)
    if features is None:  # only the main rank receives them
        return None
    database, queries = features

    # ---- Search by L2 distance of the descriptors
    with run.phase("search"):
        results = search(database, queries, pipeline.k)

    # ---- Recalls, predictions.csv, results.json, pictures, report.html
    return pipeline.report(dataset, run, database=database, stages={"Float": results})


if __name__ == "__main__":
    cli_main(main)
