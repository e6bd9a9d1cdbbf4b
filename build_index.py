"""Build an index of a folder of images, or of a video, in which search.py finds places, and keep it up to date.
Positions are not needed.
"""

from utils.cli.search import BuildIndexArguments
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(BuildIndexArguments, __doc__)  # before the imports that take seconds

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from datasets.config import PositionConfig
from datasets.folder import locate_folder
from datasets.layouts import list_source
from model import ModelChoice
from utils.retrieval.config import PCAConfig
from utils.retrieval.evaluation import find_pca, load_extractor
from utils.retrieval.extraction import extract
from utils.retrieval.index import maintenance, weights_of
from utils.retrieval.index.writer import check_folder
from utils.runtime import distributed
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main(args: BuildIndexArguments) -> None:
    index = args.index_folder
    if args.merge:
        count = maintenance.merge(args.merge, index)
        print(printable(f"The index {index} is complete and holds {count} images."))
    if args.folder:
        distributed.init(args.extraction.device)
        distributed.run_on_main(partial(check_folder, index, append=args.append))
        watcher = maintenance.Watcher(args.watch, time.time) if args.watch else None
        update(args, args.folder, watcher)
        while args.watch:
            time.sleep(args.watch)
            update(replace(args, append=True, prune=True), args.folder, watcher)
    if args.compact:
        print(printable(f"{maintenance.compact(index)} images that were taken out of {index} no longer take space."))


def update(args: BuildIndexArguments, folder: Path, watcher: maintenance.Watcher | None = None) -> None:
    """Describes the images of the folder that the index lacks, or that were changed since. watcher: of rounds in which
    a folder changes.
    """
    index = args.index_folder
    stored = distributed.run_on_main(partial(maintenance.stored_metadata, index))
    extraction, config = args.settings(stored)
    if stored and args.image_root:
        distributed.run_on_main(partial(maintenance.move, index, args.image_root))

    # ---- Images
    paths = distributed.run_on_main(partial(list_source, folder, fps=args.fps))
    above = folder.parent if folder.is_file() else folder  # of a video
    find_changes = partial(maintenance.changes_since, index, paths, folder, check_content=args.check_content)
    changes = distributed.run_on_main(find_changes)
    chosen = sorted([*changes.new, *changes.changed])
    if watcher:
        chosen = [i for i in chosen if watcher.is_ready(paths[i])]
        if not chosen and not changes.gone:
            return
    if distributed.is_main():
        print(printable(f"{len(paths)} images in {folder}: {changes.summary}"), flush=True)

    # ---- Model, and positions
    if chosen or args.model.is_stated:  # which must be that of the index
        choice, source = args.model.choice, args.model.source
        if stored and not args.model.is_stated:
            choice, source = ModelChoice(**asdict(stored.model_config)), weights_of(stored, index)
        extractor = load_extractor(choice, source, extraction, index=index)
        config = replace(config, weights=source if isinstance(source, Path) else None)
        described = [paths[i] for i in chosen]
        positions = PositionConfig.parse(config.positions or "auto")
        images, summary = distributed.run_on_main(partial(locate_folder, described, above, positions))
        if distributed.is_main():
            model = f"{source}, {extractor.model.config.flags}; images of {extractor.config.image_config}"
            print(printable(f"{summary}\nModel: {model}"), flush=True)

        # ---- Features, which go to the index chunk by chunk (under torchrun, of every rank's share)
        pca = find_pca(extractor, PCAConfig(), index)  # an evaluation may have begun the index
        extract(replace(extractor, pca=pca), images, save_to=config)

    gone = changes.gone if args.prune else []
    count = distributed.run_on_main(partial(maintenance.finish, index, gone))
    if distributed.is_main():
        print(printable(f"The index {index} is complete and holds {count} images."), flush=True)


if __name__ == "__main__":
    cli_main(partial(main, args))
