"""What every evaluation script does with its flags."""

import logging
from dataclasses import asdict, replace
from functools import partial

import torch

from datasets.benchmark import Benchmark
from model import InputError
from model.index.projections import Projections
from utils.cli.evaluation import EvaluationArguments
from utils.retrieval.config import ExtractionConfig, image_flags
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
    model, index = args.model, args.index
    benchmarks = read_benchmarks(args.data.benchmarks, has_database=index.load_index is None)
    extractor = load_extractor(
        model.choice,
        model.any_source,
        args.extraction,
        index=index.location,
        crops=args.crops,
        num_images=num_images(benchmarks),
    )
    extractor = replace(extractor, projections=Projections(pca=find_pca(extractor, args.pca, index.folder)))
    found = {"model": model.label} | asdict(extractor.model.config) | image_flags(extractor.config.image_config)
    run = RunDir(args.save_dir, args.flags | found)
    logging.info("Engine: %s", extractor.model.engine)
    evaluate_each(benchmarks, run, Pipeline(extractor, args, search, weights=model.file).evaluate)


def num_images(benchmarks: dict[str, Benchmark | InputError]) -> int:
    """How many images there are to describe."""
    return sum(len(part.database) + len(part.queries) for part in benchmarks.values() if isinstance(part, Benchmark))


def with_extraction(args: EvaluationArguments, extraction: ExtractionConfig) -> EvaluationArguments:
    """The same command line with other settings of extraction, as its flags then state them."""
    if extraction == args.extraction:
        return args
    exif = extraction.exif_orientation
    report, flags = replace(args.report, exif_orientation=exif), args.flags | {"exif_orientation": exif}
    return replace(args, extraction=extraction, report=report, flags=flags)
