"""Find the places of images: the best matches of each in an index, with positions and distances."""

from utils.cli.search import OBSOLETE_IN_SEARCH, SearchArguments
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(SearchArguments, __doc__, refused=OBSOLETE_IN_SEARCH)  # before the imports that take seconds

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from datasets.benchmark import ImageSet
from datasets.layouts import find_images
from model import InputError
from model.files import MAX_NAME_BYTES
from model.weights import load_model
from model.zoo import find_model
from utils.retrieval.extraction import Extractor, extract, prepare, settle_images
from utils.retrieval.index import IndexMetadata, open_index
from utils.retrieval.matches import Match, list_matches, table_lines
from utils.retrieval.search import search_and_rerank
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
    index = open_index(args.index, verify=not args.trust_index, allow_incomplete=args.allow_incomplete_index)
    print(f"The index {args.index} holds {len(index)} images.", file=sys.stderr if args.json else sys.stdout)
    source = args.resume or (find_model(args.model) if args.model else index.weights)
    if isinstance(source, Path) and not source.exists():
        raise InputError(f"The model of the index {args.index} is not at {source}. Give its path with --model.")
    settings = index.metadata.with_orientation(args.extraction)
    settings = settle_images(settings, index.metadata.image_config)
    model = load_model(index.metadata.model_config, source)
    warn_of_large_images(index.metadata.image_config.resize)
    index.require_compatible(IndexMetadata.of(model, settings, pca=index.pca))

    # ---- Search, and re-ranking if the model is a two-branch one
    extractor = Extractor(model=prepare(model, settings), config=settings, pca=index.pca)
    queries = extract(extractor, ImageSet.without_positions(images))
    assert queries is not None, "this script has one process"
    rerank_num = args.search.rerank_num if model.config.rerank else 0
    stages = search_and_rerank(index.features(), queries, args.results, rerank_num=rerank_num, device=settings.device)

    # ---- Report: a table for each image, or one JSON object for all; then pictures, if wanted
    found = list_matches(stages[-1].first(args.results), index.images)
    pictures: Sequence[Path | None] = [None] * len(images)
    if args.save_pictures:
        pictures = [args.save_pictures / picture_name(i + 1, image) for i, image in enumerate(images)]
    if args.json:
        weights = str(source) if isinstance(source, Path) else "published"
        content = {
            "index": {"folder": str(args.index), "images": len(index), "utm_zone": index.images.utm_zone},
            "model": {**asdict(model.config), "weights": weights, "resize": settings.resize},
            "queries": [
                {
                    "image": image,
                    "picture": picture and str(picture),
                    "matches": [match._asdict() for match in matches],
                }
                for image, picture, matches in zip(images, pictures, found, strict=True)
            ],
        }
        print(json.dumps(content, indent=2, allow_nan=False), flush=True)
    else:
        print_tables(images, pictures, found, has_zone=index.images.utm_zone is not None)
    if args.save_pictures:
        save_pictures(args.save_pictures, images, found, exif_orientation=settings.exif_orientation)


def warn_of_large_images(size: tuple[int, int]) -> None:
    """Warns of a size (H, W) of an index for which the model computes for minutes: time grows with its square."""
    if size[0] * size[1] > LARGE_PIXELS:
        message = (
            "The index was built with images of %d x %d pixels. Each image takes long to compute, and much memory."
        )
        logging.warning(message, *size)


def print_tables(
    images: list[str], pictures: Sequence[Path | None], found: list[list[Match]], *, has_zone: bool
) -> None:
    """Prints the matches of each image, with positions if some are known, and with degrees if their zone is."""
    has_positions = any(match.easting is not None for matches in found for match in matches)
    for image, picture, matches in zip(images, pictures, found, strict=True):
        print(printable(f"\n{image}"))
        print("\n".join(table_lines(matches, positions=has_positions, degrees=has_positions and has_zone)))
        if picture:
            print(printable(f"Picture: {picture}"))
    sys.stdout.flush()


def picture_name(number: int, image: str) -> str:
    """The name of an image's picture: its own, shortened to what a file name may be."""
    stem = os.fsencode(Path(image).stem)
    if len(stem) > MAX_NAME_BYTES - 16:
        stem = stem[: MAX_NAME_BYTES - 16].decode(errors="ignore").encode()  # not within a letter
    return f"{number:03d}_{os.fsdecode(stem)}.png"


def save_pictures(folder: Path, images: list[str], found: list[list[Match]], *, exif_orientation: bool) -> None:
    """Saves a PNG of each image with its matches."""
    from utils.retrieval.report.pictures import Painter, Shown, arrange, save_picture  # slow to import

    painter = Painter(exif_orientation=exif_orientation)
    for i, (image, matches) in enumerate(zip(images, found, strict=True)):
        query = Shown(image, ["Query", Path(image).name], "query")
        shown = [Shown(match.path, match.captions) for match in matches]
        picture = painter.draw(arrange([query], [shown], PICTURE_COLUMNS))
        save_picture(picture, folder / picture_name(i + 1, image))


if __name__ == "__main__":
    cli_main(partial(main, args))
