"""Evaluate a binary SelaVPR++ model: exact search of each query among the database's 512-bit codes by Hamming distance."""
import torch

from datasets.benchmark import Benchmark
from model import CODE_BITS
from utils.arguments import parse_evaluation
from utils.evaluation import extract_benchmark, load_model, report
from utils.logs import Run, run_script
from utils.retrieval import search_hamming


def main() -> None:
    # ---- Arguments, dataset, model
    args = parse_evaluation(__doc__, hashing=True)
    torch.manual_seed(args.seed)
    benchmark = Benchmark(args.datasets_folder, args.dataset_name, args.split, args.val_positive_dist_threshold)
    model = load_model(args.backbone, args.aggregation, args.hashing, args.rerank, args.resume, args.device)
    run = Run(args)
    run.log(benchmark)

    # ---- Codes
    with run.phase("extraction"):
        database, queries = extract_benchmark(model, benchmark, args.resize, not args.no_antialias, args.infer_batch_size,
                                              args.num_workers, args.device, args.precision)

    # ---- Search
    with run.phase("search"):
        distances, predictions = search_hamming(database.codes, queries.codes, max(args.recall_values))

    # ---- Report
    report(run, benchmark, distances, predictions, args.recall_values, CODE_BITS, metric="hamming")


if __name__ == "__main__":
    run_script(main)
