"""Evaluate a hashing-only SelaVPR++ model: Hamming search with its 512-bit codes, exact or (--ivf) approximate."""

from utils.cli.evaluation import FLOAT_FLAGS, OWN_CODES_FLAGS, HashingEvaluation
from utils.runtime.parser import parse

if __name__ == "__main__":
    # Before the imports that take seconds.
    args = parse(HashingEvaluation, __doc__, refused=FLOAT_FLAGS | OWN_CODES_FLAGS)

from functools import partial

from utils.cli.evaluate import evaluate_datasets
from utils.retrieval.evaluation import Evaluation, Stages
from utils.retrieval.search import search
from utils.runtime.script import cli_main


def main(args: HashingEvaluation) -> None:
    evaluate_datasets(args, search_codes)  # features of each dataset, the search below, a report


def search_codes(evaluation: Evaluation) -> Stages:
    """The database images with the nearest codes for each query, by Hamming distance."""
    database, queries, k = evaluation.database, evaluation.queries, evaluation.k
    with evaluation.run.phase("search"):
        return {"Binary": search(database, queries, k, device=evaluation.device)}


if __name__ == "__main__":
    cli_main(partial(main, args))
