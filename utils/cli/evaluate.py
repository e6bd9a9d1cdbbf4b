"""What every evaluation script does with its flags."""

from dataclasses import asdict, replace
from functools import partial

import torch

from utils.cli.evaluation import EvaluationArguments
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.evaluation import (
    Pipeline,
    Search,
    evaluate_each,
    find_pca,
    load_extractor,
    read_benchmarks,
    settings_of_index,
)
from utils.runtime import distributed
from utils.runtime.run_dir import RunDir


def evaluate_datasets(args: EvaluationArguments, search: Search) -> None:
    """Features, search and report of each dataset, usually one."""
    distributed.init(args.extraction.device)
    torch.manual_seed(args.seed)
    args = with_extraction(args, distributed.run_on_main(partial(settings_of_index, args.index, args.extraction)))
    weights, index = args.model.resume, args.index
    benchmarks = read_benchmarks(args.data.benchmarks, has_database=index.load_index is None)
    extractor = load_extractor(args.model.choice, weights, args.extraction, sizes=args.image_sizes)
    extractor = replace(extractor, pca=find_pca(extractor, args.pca, index.folder))
    run = RunDir(args.save_dir, args.flags | asdict(extractor.model.config))
    evaluate_each(benchmarks, run, Pipeline(extractor, args, search, weights=weights).evaluate)


def with_extraction(args: EvaluationArguments, extraction: ExtractionConfig) -> EvaluationArguments:
    """The same command line with other settings of extraction, as its flags then state them."""
    if extraction == args.extraction:
        return args
    exif = extraction.exif_orientation
    flags = {"resize": list(extraction.resize), "no_antialias": not extraction.antialias, "exif_orientation": exif}
    report = replace(args.report, exif_orientation=exif)
    return replace(args, extraction=extraction, report=report, flags=args.flags | flags)
