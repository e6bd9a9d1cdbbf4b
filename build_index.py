"""Build an index of a folder of images, or of a video, in which search.py finds places. Positions are not needed."""

from utils.cli.search import BuildIndexArguments
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(BuildIndexArguments, __doc__)  # before the imports that take seconds

from dataclasses import replace
from functools import partial

from datasets.folder import locate_images
from datasets.layouts import list_source
from utils.retrieval.config import PCAConfig
from utils.retrieval.evaluation import find_pca, load_extractor
from utils.retrieval.extraction import extract
from utils.retrieval.index.writer import check_folder
from utils.runtime import distributed
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main(args: BuildIndexArguments) -> None:
    distributed.init(args.extraction.device)

    # ---- Images and model
    distributed.run_on_main(partial(check_folder, args.index.folder, append=args.index.append))
    paths = distributed.run_on_main(partial(list_source, args.folder, fps=args.fps))
    extractor = load_extractor(args.model.choice, args.model.source, args.extraction, index=args.index.folder)

    # ---- Positions
    above = args.folder.parent if args.folder.is_file() else args.folder  # of a video
    images, summary = distributed.run_on_main(partial(locate_images, paths, above, args.position_config))
    if distributed.is_main():
        print(printable(f"{len(images)} images in {args.folder}. {summary}"))
        model = f"{args.model.label}, {extractor.model.config.flags}; images of {extractor.config.image_config}"
        print(printable(f"Model: {model}"), flush=True)

    # ---- Features, which go to the index chunk by chunk (under torchrun, of every rank's share)
    pca = find_pca(extractor, PCAConfig(), args.index.folder)  # an evaluation may have begun the index
    features = extract(replace(extractor, pca=pca), images, save_to=args.index)
    if features is not None:  # only the main rank receives them
        print(printable(f"The index {args.index.folder} is complete and holds {len(features.images)} images."))


if __name__ == "__main__":
    cli_main(partial(main, args))
