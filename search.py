"""Find the places of images: the best matches of each in an index, with positions and distances."""

from utils.cli.search import SearchArguments
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(SearchArguments, __doc__)  # before the imports that take seconds

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from datasets.benchmark import ImageSet
from datasets.layouts import find_images
from model import InputError
from model.weights import load_model
from utils.retrieval.extraction import Extractor, extract, prepare
from utils.retrieval.index import IndexMetadata, open_index
from utils.retrieval.matches import Match, list_matches, table_lines
from utils.retrieval.search import search_and_rerank
from utils.runtime.atomic_files import make_folder
from utils.runtime.parser import parse
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable

PICTURE_COLUMNS = 5  # matches side by side


def main(args: SearchArguments) -> None:
    images = find_images(args.images)
    if args.save_pictures:
        make_folder(args.save_pictures, exist_ok=True)

    # ---- The index, and the model that it was built with
    index = open_index(args.index, verify=not args.trust_index, allow_incomplete=args.allow_incomplete_index)
    print(f"The index {args.index} holds {len(index)} images.", file=sys.stderr if args.json else sys.stdout)
    weights = args.resume or index.weights
    if weights is not None and not weights.exists():
        raise InputError(f"The model of the index {args.index} is not at {weights}. Give its path with --resume.")
    settings = index.metadata.query_settings(args.extraction, exif_by_default=True)
    model = load_model(index.metadata.model_config, weights)
    index.require_compatible(IndexMetadata.of(model, settings, pca=index.pca))

    # ---- Search, and re-ranking if the model is a two-branch one
    extractor = Extractor(model=prepare(model, settings), config=settings, pca=index.pca)
    queries = extract(extractor, ImageSet.without_positions(images))
    assert queries is not None, "this script has one process"
    rerank_num = args.search.rerank_num if model.config.rerank else 0
    stages = search_and_rerank(index.features(), queries, args.results, rerank_num=rerank_num, device=settings.device)

    # ---- Report: pictures, if wanted; a table for each image, or one JSON object for all
    found = list_matches(stages[-1].first(args.results), index.images)
    pictures: Sequence[str | None] = [None] * len(images)
    if args.save_pictures:
        pictures = save_pictures(args.save_pictures, images, found, exif_orientation=settings.exif_orientation)
    if args.json:
        content = {
            "index": {"folder": str(args.index), "images": len(index), "utm_zone": index.images.utm_zone},
            "model": {**asdict(model.config), "weights": str(weights or "published"), "resize": settings.resize},
            "queries": [
                {"image": image, "picture": picture, "matches": [match._asdict() for match in matches]}
                for image, picture, matches in zip(images, pictures, found, strict=True)
            ],
        }
        print(json.dumps(content, indent=2, allow_nan=False))
        return
    has_positions = any(match.easting is not None for matches in found for match in matches)
    has_degrees = has_positions and index.images.utm_zone is not None
    for image, picture, matches in zip(images, pictures, found, strict=True):
        print(printable(f"\n{image}"))
        print("\n".join(table_lines(matches, positions=has_positions, degrees=has_degrees)))
        if picture:
            print(printable(f"Picture: {picture}"))


def save_pictures(folder: Path, images: list[str], found: list[list[Match]], *, exif_orientation: bool) -> list[str]:
    """Saves a PNG of each image with its matches, and returns their paths."""
    from utils.retrieval.report.pictures import Painter, Shown, arrange, save_picture  # slow to import

    painter, pictures = Painter(exif_orientation=exif_orientation), list[str]()
    for i, (image, matches) in enumerate(zip(images, found, strict=True)):
        path = folder / f"{i + 1:03d}_{Path(image).stem}.png"
        query = Shown(image, ["Query", Path(image).name], "query")
        shown = [Shown(match.path, match.captions) for match in matches]
        save_picture(painter.draw(arrange([query], [shown], PICTURE_COLUMNS)), path)
        pictures.append(str(path))
    return pictures


if __name__ == "__main__":
    cli_main(partial(main, args))
