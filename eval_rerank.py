"""Evaluate a two-branch SelaVPR++ model: search by 512-bit codes, then re-ranking by float descriptors."""

from dataclasses import asdict
from functools import partial

import torch

from datasets.benchmark import Benchmark
from model import InferenceModel
from utils.cli import EvaluationArguments, parse_evaluation
from utils.retrieval.evaluation import Results, evaluate_each, find_pca, load_model_on_all_ranks, read_benchmarks
from utils.retrieval.extraction import extract
from utils.retrieval.index import open_index
from utils.retrieval.index.inverted_file import open_inverted_file
from utils.retrieval.pca import PCA
from utils.retrieval.report import report
from utils.retrieval.search import rerank, search_hamming
from utils.retrieval.test_methods import merge_crops
from utils.runtime import distributed
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main


def main() -> None:
    args = parse_evaluation(__doc__, hashing=True, rerank=True)
    distributed.init(args.extraction.device)
    torch.manual_seed(args.seed)

    # ---- Datasets (usually one) and model
    benchmarks = read_benchmarks(args.benchmarks, has_database=args.load_index is None)
    model = load_model_on_all_ranks(
        args.model,
        args.resume,
        extraction=args.extraction,
        image_sizes=args.image_sizes,
        compiled=args.compile,
    )
    pca = find_pca(model, args.extraction, args.pca, index=args.index_folder)
    run = RunDir(args.save_dir, args.flags | asdict(model.config))
    evaluate_each(benchmarks, run, partial(evaluate, args=args, model=model, pca=pca))


def evaluate(
    dataset: Benchmark, run: RunDir, *, args: EvaluationArguments, model: InferenceModel, pca: PCA | None
) -> Results | None:
    """Writes the results to the run's folder, and returns them; None on all but the main rank."""
    if args.ivf and not (args.load_index or args.save_index):
        args.ivf.check_size(len(dataset.database))  # fails now, not after extraction; an index would keep the features

    # ---- Codes and descriptors (under torchrun, of every rank's share)
    with run.phase("extraction"):
        if args.load_index:
            database = open_index(
                args.load_index,
                model,
                args.extraction,
                verify=not args.trust_index,
                allow_incomplete=args.allow_incomplete_index,
            )
        else:
            database = extract(model, dataset.database, args.extraction, save_to=args.save_index, pca=pca)
        queries = extract(model, dataset.queries, args.extraction.for_queries(args.test_method), pca=pca)
    if database is None or queries is None:  # only the main rank receives the features
        return None

    # ---- First stage: search by Hamming distance of the codes
    k = max(args.rerank_num, *args.recall_values)
    if args.ivf:
        with run.phase("inverted_file"):
            inverted_file = open_inverted_file(database.codes, args.ivf, args.index_folder)
        with run.phase("search"):
            candidates = inverted_file.search(queries.codes, k)
    else:
        with run.phase("search"):
            candidates = search_hamming(database.codes, queries.codes, k, device=args.extraction.device)
    if args.merges_crops:  # the results of the crops of each query
        candidates = merge_crops(candidates, args.test_method, k=k, majority_weight=args.majority_weight)

    # ---- Second stage: the first rerank_num results of each query by L2 distance of the descriptors; the rest stay
    with run.phase("rerank"):
        results = rerank(candidates, database.descriptors, queries.descriptors, rerank_num=args.rerank_num)

    # ---- Recalls of both stages, predictions.csv, results.json, pictures, report.html
    dataset = dataset.with_database(database.images)  # an index may hold other images than the dataset
    stages = {"First stage, Hamming": candidates, "Re-ranked": results}
    descriptor_dim = database.descriptors.shape[1]
    return report(
        run, dataset, stages, recall_values=args.recall_values, descriptor_dim=descriptor_dim, config=args.report
    )


if __name__ == "__main__":
    cli_main(main)
