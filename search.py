"""Find the places of images: the best matches of each in an index, with positions and distances."""

from utils.cli.search import OBSOLETE_IN_SEARCH, SearchArguments
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(SearchArguments, __doc__, refused=OBSOLETE_IN_SEARCH)  # before the imports that take seconds

import json
import logging
import os
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from datasets.image_set import ImageSet
from datasets.layouts import find_images
from model import sequences
from model.files import MAX_NAME_BYTES
from model.places import MATCHES
from model.zoo import PublishedModel, find_model
from utils.retrieval.acceptance import distance_kind, find_acceptance
from utils.retrieval.evaluation import load_extractor, model_of
from utils.retrieval.extraction import extract
from utils.retrieval.index import metadata_of, open_indexes, turned_as
from utils.retrieval.matches import Answer, EstimatedPlace, estimate_places, list_matches, table_lines
from utils.retrieval.search import search_and_rerank
from utils.retrieval.sequences import search_sequences
from utils.runtime.atomic_files import make_folder
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable

PICTURE_COLUMNS = 5  # matches side by side
LARGE_PIXELS = 8 * 322 * 322  # of the usual size: attention takes some 50 times as long


def main(args: SearchArguments) -> None:
    images = find_images(args.images, fps=args.fps)
    if args.save_pictures:
        make_folder(args.save_pictures, exist_ok=True)

    # ---- The index, and the model that it was built with
    options = {"verify": not args.trust_index, "allow_incomplete": args.allow_incomplete_index}
    index = open_indexes(args.indexes, image_root=args.image_root, **options)
    print(f"The index {index} holds {len(index)} images.", file=sys.stderr if args.json else sys.stdout)
    stated = args.resume or (find_model(args.model) if args.model else None)
    choice, source = model_of(index.metadata, index, args.hub, stated)
    warn_of_large_images(index.metadata.image_config.resize)
    settings = turned_as(index.metadata, args.extraction)
    extractor = load_extractor(choice, source, settings, index=args.indexes[0], num_images=len(images))
    extractor = replace(extractor, projections=index.projections)
    model, settings = extractor.model, extractor.config
    print(f"Engine: {model.engine}", file=sys.stderr)
    index.metadata.require_compatible(metadata_of(model, settings, projections=index.projections), index)
    calibrated = args.indexes[0] if len(args.indexes) == 1 else None  # a calibration.json is about one index
    acceptance = find_acceptance(args.accept, distance_kind(index.metadata, args.search.sequence), calibrated)
    if acceptance:
        print(acceptance.line, file=sys.stderr if args.json else sys.stdout)

    # ---- Search, and re-ranking if the index has codes and descriptors
    queries = extract(extractor, ImageSet.without_positions(images))
    assert queries is not None, "this script has one process"
    rerank_num = args.search.rerank_num if index.metadata.is_two_stage else 0
    length = args.search.sequence
    k = max(args.results, MATCHES, sequences.MATCHES if length > 1 else 1)
    stages = search_and_rerank(index.features(), queries, k, rerank_num=rerank_num, device=settings.device)
    if length > 1:
        stages.append(search_sequences(stages[-1], queries.images, index.images, length=length))

    # ---- Report: a table for each image, or one JSON object for all; then pictures, if wanted
    found = list_matches(stages[-1].first(args.results), index.images)
    places = estimate_places(stages[-1], index.images, acceptance.radius if acceptance else None)
    answers = []
    for i, (image, matches, place) in enumerate(zip(images, found, places, strict=True)):
        picture = args.save_pictures and args.save_pictures / picture_name(i + 1, image)
        accepted = acceptance.accepts(matches[0].distance) if acceptance else None
        known_place = None if accepted is False else EstimatedPlace.of(place)
        answers.append(Answer(image, picture, accepted, known_place, matches))
    if args.json:
        weights = "published" if isinstance(source, PublishedModel) else str(source)
        content = {
            "index": {"folder": str(index), "images": len(index)},
            "model": {**asdict(model.config), "weights": weights, "resize": settings.resize},
            "accept": acceptance and {"max_distance": acceptance.max_distance, "source": acceptance.source},
            "queries": [answer.to_json() for answer in answers],
        }
        print(json.dumps(content, indent=2, allow_nan=False), flush=True)
    else:
        print_tables(answers)
    if args.save_pictures:
        save_pictures(answers, exif_orientation=settings.exif_orientation)


def warn_of_large_images(size: tuple[int, int]) -> None:
    """Warns of a size (H, W) of an index for which the model computes for minutes: time grows with its square."""
    if size[0] * size[1] > LARGE_PIXELS:
        message = (
            "The index was built with images of %d x %d pixels. Each image takes long to compute, and much memory."
        )
        logging.warning(message, *size)


def print_tables(answers: list[Answer]) -> None:
    """Prints the matches of each image, with metres and degrees where some are known."""
    matches = [match for answer in answers for match in answer.matches]
    has_metres = any(match.easting is not None for match in matches)
    has_degrees = any(match.latitude is not None for match in matches)
    for answer in answers:
        print(printable(f"\n{answer.image}{': ' if answer.verdict else ''}{answer.verdict}"))
        print("\n".join(table_lines(answer.matches, metres=has_metres, degrees=has_degrees)))
        if answer.place:
            print(answer.place)
        if answer.picture:
            print(printable(f"Picture: {answer.picture}"))
    sys.stdout.flush()


def picture_name(number: int, image: str) -> str:
    """The name of an image's picture: its own, shortened to what a file name may be."""
    stem = os.fsencode(Path(image).stem)
    if len(stem) > MAX_NAME_BYTES - 16:
        stem = stem[: MAX_NAME_BYTES - 16].decode(errors="ignore").encode()  # not within a letter
    return f"{number:03d}_{os.fsdecode(stem)}.png"


def save_pictures(answers: list[Answer], *, exif_orientation: bool) -> None:
    """Saves a PNG of each image with its matches."""
    from utils.retrieval.report.pictures import Painter, Shown, arrange, save_picture  # slow to import

    painter = Painter(exif_orientation=exif_orientation)
    for answer in answers:
        query = Shown(answer.image, answer.captions, "query")
        shown = [Shown(match.path, match.captions) for match in answer.matches]
        assert answer.picture, "the flag gives each image one"
        save_picture(painter.draw(arrange([query], [shown], PICTURE_COLUMNS)), answer.picture)


if __name__ == "__main__":
    cli_main(partial(main, args))
