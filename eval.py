"""Evaluate a float SelaVPR++ model: exact L2 search with its descriptors."""

from dataclasses import asdict
from functools import partial

import torch

from datasets.benchmark import Benchmark
from model import InferenceModel
from utils.cli import EvaluationArguments, parse_evaluation
from utils.retrieval.evaluation import Results, evaluate_each, find_pca, load_model_on_all_ranks, read_benchmarks
from utils.retrieval.extraction import extract
from utils.retrieval.index import open_index
from utils.retrieval.pca import PCA
from utils.retrieval.report import report
from utils.retrieval.search import search_l2
from utils.retrieval.test_methods import merge_crops
from utils.runtime import distributed
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main


def main() -> None:
    args = parse_evaluation(__doc__)
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
    # ---- Descriptors (under torchrun, of every rank's share)
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

    # ---- Search
    k = max(args.recall_values)
    with run.phase("search"):
        results = search_l2(database.descriptors, queries.descriptors, k)
        if args.merges_crops:  # the results of the crops of each query
            results = merge_crops(results, args.test_method, k=k, majority_weight=args.majority_weight)

    # ---- Recalls, predictions.csv, results.json, pictures, report.html
    dataset = dataset.with_database(database.images)  # an index may hold other images than the dataset
    descriptor_dim = database.descriptors.shape[1]
    return report(
        run,
        dataset,
        {"Float": results},
        recall_values=args.recall_values,
        descriptor_dim=descriptor_dim,
        config=args.report,
    )


if __name__ == "__main__":
    cli_main(main)
