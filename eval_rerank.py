"""Evaluate a two-branch SelaVPR++ model: search by 512-bit codes, then re-ranking by float descriptors."""

from datasets.benchmark import Benchmark
from utils.cli.evaluation import TwoBranchEvaluation, evaluate_datasets
from utils.cli.parser import parse
from utils.retrieval.evaluation import Pipeline
from utils.retrieval.report import Results
from utils.retrieval.search import rerank, search
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main


def main() -> None:
    evaluate_datasets(parse(TwoBranchEvaluation, __doc__), evaluate)


def evaluate(dataset: Benchmark, run: RunDir, pipeline: Pipeline) -> Results | None:
    """Searches one dataset and reports the results to the run's folder. Returns None on all but the main rank."""
    # ---- Codes and descriptors of the database and of the queries
    features = pipeline.features(dataset, run)
    if features is None:  # only the main rank receives them
        return None
    database, queries = features

    # ---- First stage: search by Hamming distance of the codes
    with run.phase("search"):
        candidates = search(database, queries, pipeline.k, device=pipeline.device)

    # ---- Second stage: the first rerank_num results of each query by L2 distance of the descriptors; the rest stay
    with run.phase("rerank"):
        results = rerank(candidates, database, queries, rerank_num=pipeline.config.search.rerank_num)

    # ---- Recalls of both stages, predictions.csv, results.json, pictures, report.html
    stages = {"First stage, Hamming": candidates, "Re-ranked": results}
    return pipeline.report(dataset, run, database=database, stages=stages)


if __name__ == "__main__":
    cli_main(main)
