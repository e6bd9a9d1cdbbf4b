"""Evaluate a two-branch SelaVPR++ model: search by 512-bit codes, then re-ranking by float descriptors."""

from utils.cli.evaluation import OWN_CODES_FLAGS, TwoBranchEvaluation
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(TwoBranchEvaluation, __doc__, refused=OWN_CODES_FLAGS)  # before the imports that take seconds

from functools import partial

from utils.cli.evaluate import evaluate_datasets
from utils.retrieval.evaluation import Evaluation, Stages
from utils.retrieval.search import rerank, search
from utils.runtime.script import cli_main


def main(args: TwoBranchEvaluation) -> None:
    evaluate_datasets(args, search_in_two_stages)  # features of each dataset, the search below, a report


def search_in_two_stages(evaluation: Evaluation) -> Stages:
    """The images with the nearest codes for each query; descriptors decide the order of the first of them."""
    database, queries, run = evaluation.database, evaluation.queries, evaluation.run

    # ---- First stage: search by Hamming distance of the codes
    with run.phase("search"):
        candidates = search(database, queries, evaluation.k, device=evaluation.device)

    # ---- Second stage: the first rerank_num results of each query by L2 distance of the descriptors; the rest stay
    with run.phase("rerank"):
        results = rerank(candidates, database, queries, rerank_num=evaluation.rerank_num)
    return {"First stage, Hamming": candidates, "Re-ranked": results}


if __name__ == "__main__":
    cli_main(partial(main, args))
