"""Evaluate a two-branch SelaVPR++ model: search by 512-bit codes, then re-ranking by float descriptors."""

import logging

import torch

from datasets.benchmark import Benchmark
from model.weights import load_model
from utils.cli import parse_evaluation
from utils.retrieval.extraction import extract
from utils.retrieval.index import open_index
from utils.retrieval.index.inverted_file import InvertedFile
from utils.retrieval.report import report
from utils.retrieval.search import rerank, search_hamming
from utils.runtime import distributed
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main


def main() -> None:
    args = parse_evaluation(__doc__, hashing=True, rerank=True)
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
    if args.ivf and not (args.load_index or args.save_index):
        args.ivf.check_size(len(dataset.database))  # fails now, not after extraction; an index would keep the features
    model = load_model(args.model, args.resume, device=args.extraction.device, compiled=args.compile)
    run = RunDir(args.save_dir, args.flags)
    logging.info("%s", dataset)

    # ---- Codes and descriptors (under torchrun, of every rank's share)
    with run.phase("extraction"):
        if args.load_index:
            database = open_index(args.load_index, model, args.extraction, verify=not args.trust_index)
        else:
            database = extract(model, dataset.database, args.extraction, save_to=args.save_index)
        queries = extract(model, dataset.queries, args.extraction)
    if database is None or queries is None:  # only the main rank receives the features
        return

    # ---- First stage: search by Hamming distance of the codes
    k = max(args.rerank_num, *args.recall_values)
    if args.ivf:
        with run.phase("inverted_file"):
            inverted_file = InvertedFile(database.codes, args.ivf)
        with run.phase("search"):
            candidates = inverted_file.search(queries.codes, k)
    else:
        with run.phase("search"):
            candidates = search_hamming(database.codes, queries.codes, k)

    # ---- Second stage: the first rerank_num results of each query by L2 distance of the descriptors; the rest stay
    with run.phase("rerank"):
        results = rerank(candidates, database.descriptors, queries.descriptors, rerank_num=args.rerank_num)

    # ---- Recalls of both stages, predictions.csv, results.json
    dataset = dataset.with_database(database.images)  # an index may hold other images than the dataset
    stages = {"First stage, Hamming": candidates, "Re-ranked": results}
    report(run, dataset, stages, recall_values=args.recall_values, descriptor_dim=model.descriptor_dim)


if __name__ == "__main__":
    cli_main(main)
