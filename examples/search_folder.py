"""Find images of the same place in a folder of images, which need no positions.

python -m examples.search_folder my_images query.jpg other.jpg --save_pictures found
python -m examples.search_folder my_images query.jpg --model my_run/best_model.pth --resize 84 112
"""

import argparse
from pathlib import Path

from datasets.benchmark import ImageSet
from datasets.images import load_image
from datasets.layouts import list_images
from model.weights import load_any_model
from utils.cli import positive_int, resolve_device
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import extract
from utils.retrieval.search import rerank, search
from utils.runtime.atomic_files import make_folder
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable
from utils.visualization import draw_matches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the images to search, also in subfolders")
    parser.add_argument("queries", type=Path, nargs="+", metavar="QUERY")
    text = "a published model, which is downloaded once, or a checkpoint file (default: %(default)s)"
    parser.add_argument("--model", default="SelaVPRplusplus_large_rerank", help=text)
    text = "size in pixels (height width), multiples of 14 (default: 322 322)"
    parser.add_argument("--resize", type=int, nargs=2, default=[322, 322], metavar=("H", "W"), help=text)
    parser.add_argument("--results", type=positive_int, default=5, help="matches of each query (default: %(default)s)")
    choices = ("auto", "cuda", "mps", "cpu")
    parser.add_argument("--device", choices=choices, default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--save_pictures", type=Path, metavar="DIR", help="save a PNG of each query with its matches")
    args = parser.parse_args()
    for query in args.queries:
        load_image(query)  # fails now, not after the model has been downloaded

    # ---- Features of the queries and of the folder
    database_images = ImageSet.without_positions(list_images(args.folder))
    device = resolve_device(args.device)
    settings = ExtractionConfig(resize=tuple(args.resize), device=device, exif_orientation=True)
    model = load_any_model(args.model).to(device)
    if args.save_pictures:
        make_folder(args.save_pictures, exist_ok=True)
    queries = extract(model, ImageSet.without_positions(args.queries), settings)
    database = extract(model, database_images, settings)
    assert database is not None and queries is not None, "this script has one process"

    # ---- Search by codes if the model has them, and re-rank by descriptors if it has both
    rerank_num = 100 if model.config.rerank else 0
    results = search(database, queries, max(args.results, rerank_num))
    if rerank_num:
        results = rerank(results, database.descriptors, queries.descriptors, rerank_num=rerank_num)

    # ---- Print the matches, best first
    distances, indices, metric = results.first(args.results)
    for i, query in enumerate(args.queries):
        matches = [database_images.paths[match] for match in indices[i]]
        captions = [f"{rank + 1}: {distances[i, rank]:.4g} {metric[rank]}" for rank in range(len(matches))]
        print(printable(f"\n{query}"))
        for caption, match in zip(captions, matches, strict=True):
            print(printable(f"  {caption:24}{match}"))
        if args.save_pictures:
            picture = args.save_pictures / f"{i + 1:03d}_{query.stem}.png"
            draw_matches(picture, query, matches, captions=captions)
            print(printable(f"  Picture: {picture}"))


if __name__ == "__main__":
    cli_main(main)
