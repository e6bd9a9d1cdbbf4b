"""What every evaluation script does with its flags."""

from dataclasses import asdict, replace

import torch

from utils.cli.evaluation import EvaluationArguments
from utils.retrieval.config import image_flags
from utils.retrieval.evaluation import Pipeline, Search, evaluate_each, find_pca, load_extractor, read_benchmarks
from utils.runtime import distributed
from utils.runtime.run_dir import RunDir


def evaluate_datasets(args: EvaluationArguments, search: Search) -> None:
    """Features, search and report of each dataset, usually one."""
    distributed.init(args.extraction.device)
    torch.manual_seed(args.seed)
    model, index = args.model, args.index
    benchmarks = read_benchmarks(args.data.benchmarks, has_database=index.load_index is None)
    extractor = load_extractor(model.choice, model.source, args.extraction, index=index.location, crops=args.crops)
    extractor = replace(extractor, pca=find_pca(extractor, args.pca, index.folder))
    found = {"model": model.label} | asdict(extractor.model.config) | image_flags(extractor.config.image_config)
    run = RunDir(args.save_dir, args.flags | found)
    evaluate_each(benchmarks, run, Pipeline(extractor, args, search, weights=model.file).evaluate)
