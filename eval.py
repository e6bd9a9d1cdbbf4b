"""Evaluate a float SelaVPR++ model: exact L2 search with its descriptors."""

import logging

import torch

from datasets.benchmark import Benchmark
from model.weights import load_model
from utils.cli import parse_evaluation
from utils.retrieval.extraction import extract
from utils.retrieval.index import open_index
from utils.retrieval.report import report
from utils.retrieval.search import search_l2
from utils.runtime import distributed
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main


def main() -> None:
    args = parse_evaluation(__doc__)
    distributed.init(args.extraction.device)
    torch.manual_seed(args.seed)

    # ---- Dataset and model
    dataset = Benchmark(
        args.datasets_folder,
        args.dataset_name,
        args.split,
        threshold=args.val_positive_dist_threshold,
        has_database=args.load_index is None,
    )
    model = load_model(args.model, args.resume, device=args.extraction.device, compiled=args.compile)
    run = RunDir(args.save_dir, args.flags)
    logging.info("%s", dataset)

    # ---- Descriptors (under torchrun, of every rank's share)
    with run.phase("extraction"):
        if args.load_index:
            database = open_index(args.load_index, model, args.extraction, verify=not args.trust_index)
        else:
            database = extract(model, dataset.database, args.extraction, save_to=args.save_index)
        queries = extract(model, dataset.queries, args.extraction)
    if database is None or queries is None:  # only the main rank receives the features
        return

    # ---- Search
    with run.phase("search"):
        results = search_l2(database.descriptors, queries.descriptors, max(args.recall_values))

    # ---- Recalls, predictions.csv, results.json
    dataset = dataset.with_database(database.images)  # an index may hold other images than the dataset
    report(run, dataset, {"Float": results}, recall_values=args.recall_values, descriptor_dim=model.descriptor_dim)


if __name__ == "__main__":
    cli_main(main)
