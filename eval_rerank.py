"""Evaluate a two-branch SelaVPR++ model: search by 512-bit codes, then re-ranking of the first results by float descriptors."""
import torch

from datasets.benchmark import Benchmark
from utils.arguments import parse_evaluation
from utils.evaluation import extract_benchmark, load_model, report
from utils.logs import Run, run_script
from utils.retrieval import rerank, search_hamming


def main() -> None:
    # ---- Arguments, dataset, model
    args = parse_evaluation(__doc__, hashing=True, rerank=True)
    torch.manual_seed(args.seed)
    benchmark = Benchmark(args.datasets_folder, args.dataset_name, args.split, args.val_positive_dist_threshold)
    model = load_model(args.backbone, args.aggregation, args.hashing, args.rerank, args.resume, args.device)
    run = Run(args)
    run.log(benchmark)

    # ---- Codes and descriptors
    with run.phase("extraction"):
        database, queries = extract_benchmark(model, benchmark, args.resize, not args.no_antialias, args.infer_batch_size,
                                              args.num_workers, args.device, args.precision)

    # ---- First stage: Hamming distance of the codes
    most = max(args.recall_values)
    with run.phase("search"):
        distances, found = search_hamming(database.codes, queries.codes, max(most, args.rerank_num))

    # ---- Second stage: L2 distance of the descriptors
    with run.phase("rerank"):
        distances, predictions = rerank(distances, found, database.descriptors, queries.descriptors, args.rerank_num)

    # ---- Report
    report(run, benchmark, distances[:, :most], predictions[:, :most], args.recall_values, model.descriptor_dim,
           reranked=args.rerank_num, first_stage=found[:, :most], metric="hamming")


if __name__ == "__main__":
    run_script(main)
