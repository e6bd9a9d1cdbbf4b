"""Evaluate a float SelaVPR++ model: exact L2 search with its descriptors, or, with --codes, in two stages."""

from utils.cli.evaluation import FloatEvaluation
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(FloatEvaluation, __doc__)  # before the imports that take seconds

from functools import partial

from utils.cli.evaluate import evaluate_datasets
from utils.retrieval.evaluation import Evaluation, Stages
from utils.retrieval.search import rerank, search
from utils.runtime.script import cli_main


def main(args: FloatEvaluation) -> None:
    evaluate_datasets(args, search_descriptors)  # features of each dataset, the search below, a report


def search_descriptors(evaluation: Evaluation) -> Stages:
    """The database images with the nearest descriptors for each query, by L2 distance on the CPU; with codes, of those
    that a search by these has found.
    """
    database, queries, run = evaluation.database, evaluation.queries, evaluation.run
    if database.codes is None:
        with run.phase("search"):
            return {"Float": search(database, queries, evaluation.k)}

    # ---- As in eval_rerank.py: by Hamming distance of the codes, then the first results by that of the descriptors
    with run.phase("search"):
        candidates = search(database, queries, evaluation.k, device=evaluation.device)
    with run.phase("rerank"):
        results = rerank(candidates, database, queries, rerank_num=evaluation.rerank_num)
    return {"First stage, Hamming": candidates, "Re-ranked": results}


if __name__ == "__main__":
    cli_main(partial(main, args))
