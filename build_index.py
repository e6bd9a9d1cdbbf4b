"""Build an index of a folder of images, in which search.py finds places. The images need no positions."""

from functools import partial

from datasets.folder import locate_images
from datasets.layouts import list_images
from utils.cli import parse_build_index
from utils.retrieval.evaluation import find_pca, load_model_on_all_ranks
from utils.retrieval.extraction import extract
from utils.retrieval.index.writer import check_folder
from utils.runtime import distributed
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main() -> None:
    args = parse_build_index(__doc__)
    distributed.init(args.extraction.device)

    # ---- Images and model
    distributed.run_on_main(partial(check_folder, args.index.folder, append=args.index.append))
    paths = distributed.run_on_main(partial(list_images, args.folder))
    model = load_model_on_all_ranks(
        args.model, args.resume, extraction=args.extraction, image_sizes=[args.extraction.resize]
    )

    # ---- Positions
    images, summary = distributed.run_on_main(partial(locate_images, paths, args.folder, args.positions))
    if distributed.is_main():
        print(printable(f"{len(images)} images in {args.folder}. {summary}"))
        print(f"Model: {model.config.flags}", flush=True)

    # ---- Features, which go to the index chunk by chunk (under torchrun, of every rank's share)
    pca = find_pca(model, args.extraction, None, index=args.index.folder)  # an evaluation may have begun the index
    features = extract(model, images, args.extraction, save_to=args.index, pca=pca)
    if features is not None:  # only the main rank receives them
        print(printable(f"The index {args.index.folder} is complete and holds {len(features.images)} images."))


if __name__ == "__main__":
    cli_main(main)
