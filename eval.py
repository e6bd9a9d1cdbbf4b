"""Evaluate a float SelaVPR++ model: exact L2 search with its descriptors."""

from utils.cli.evaluation import FloatEvaluation
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(FloatEvaluation, __doc__)  # before the imports that take seconds

from functools import partial

from utils.cli.evaluate import evaluate_datasets
from utils.retrieval.evaluation import Evaluation, Stages
from utils.retrieval.search import search
from utils.runtime.script import cli_main


def main(args: FloatEvaluation) -> None:
    evaluate_datasets(args, search_descriptors)  # features of each dataset, the search below, a report


def search_descriptors(evaluation: Evaluation) -> Stages:
    """The database images with the nearest descriptors for each query, by L2 distance on the CPU."""
    with evaluation.run.phase("search"):
        return {"Float": search(evaluation.database, evaluation.queries, evaluation.k)}


if __name__ == "__main__":
    cli_main(partial(main, args))
