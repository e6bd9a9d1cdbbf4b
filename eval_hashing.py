"""Evaluate a binary SelaVPR++ model: exact search of each query among the database's 512-bit codes by Hamming distance."""
import torch

from datasets.benchmark import Benchmark
from utils import distributed
from utils.arguments import extraction_settings, index_store, parse_evaluation
from utils.evaluation import evaluate, load_model
from utils.logs import Run, run_script


def main() -> None:
    # ---- Arguments
    args = parse_evaluation(__doc__, hashing=True)
    args.device = distributed.start(args.device)
    torch.manual_seed(args.seed)

    # ---- Dataset and model
    benchmark = Benchmark(args.datasets_folder, args.dataset_name, args.split, args.val_positive_dist_threshold,
                          has_database=args.load_index is None)
    model = load_model(args.backbone, args.aggregation, args.hashing, args.rerank, args.resume, args.device, args.compile)
    run = Run(args) if distributed.is_main() else None

    # ---- Extraction, search, report
    evaluate(run, model, benchmark, extraction_settings(args), args.recall_values, index_store(args, model), inverted_file=args.ivf)


if __name__ == "__main__":
    run_script(main)
