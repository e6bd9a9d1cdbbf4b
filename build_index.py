"""Build an index of a folder of images, or of a video, in which search.py finds places, and keep it up to date.
Positions are not needed.
"""

from utils.cli.search import BuildIndexArguments
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(BuildIndexArguments, __doc__)  # before the imports that take seconds

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets.config import PositionConfig
from datasets.folder import locate_folder
from datasets.layouts import list_source
from model import InputError
from model.index.projections import Projections
from utils.retrieval.codes import with_codes
from utils.retrieval.config import PCAConfig
from utils.retrieval.evaluation import find_pca, load_extractor, model_of
from utils.retrieval.extraction import extract
from utils.retrieval.index import maintenance
from utils.retrieval.index.writer import check_folder
from utils.runtime import distributed
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main(args: BuildIndexArguments) -> None:
    distributed.init(args.extraction.device)
    index = args.index_folder
    if args.merge:
        count = distributed.run_on_main(partial(maintenance.merge, args.merge, index, args.image_root))
        say(f"The index {index} is complete and holds {count} images.")
    if args.folder:
        distributed.run_on_main(partial(check_folder, index, append=args.append))
        watcher = maintenance.Watcher(args.watch, time.time) if args.watch else None
        try:
            update(args, args.folder, watcher)
        except InputError:
            if watcher is None:
                raise
            watcher.tries_files = True  # one may be damaged, which does not keep the others from being watched
            update(replace(args, append=True), args.folder, watcher)
        while watcher and args.watch:
            time.sleep(args.watch)
            try:
                update(replace(args, append=True, prune=True), args.folder, watcher)
            except InputError as error:  # such as a file that cannot be read: the next round leaves it out
                logging.warning("%s Looking again in %g seconds.", error, args.watch)
                watcher.tries_files = True
    if args.compact:
        gone = distributed.run_on_main(partial(maintenance.compact, index))
        say(f"Compacted the index {index}: {gone} images that were taken out took space.")


def update(args: BuildIndexArguments, images_folder: Path, watcher: maintenance.Watcher | None = None) -> None:
    """Describes the images of a folder that the index lacks, or that were changed since. watcher: of rounds in which
    the folder changes.
    """
    index = args.index_folder
    stored = distributed.run_on_main(partial(maintenance.stored_metadata, index))
    extraction, config = args.settings(stored)
    if stored and args.image_root:
        distributed.run_on_main(partial(maintenance.move, index, args.image_root))

    # ---- Images
    find_root = partial(maintenance.known_root, index, images_folder)
    folder = distributed.run_on_main(find_root) if stored else images_folder
    above = folder.parent if folder.is_file() else folder  # of a video
    paths = distributed.run_on_main(partial(list_source, folder, fps=args.fps))
    find_changes = partial(maintenance.changes_since, index, paths, folder, check_content=args.check_content)
    changes = distributed.run_on_main(find_changes)
    chosen = sorted([*changes.new, *changes.changed])
    if watcher:
        chosen = distributed.run_on_main(lambda: [i for i in chosen if watcher.is_ready(paths[i])])
        if not chosen and not changes.gone and distributed.run_on_main(partial(maintenance.is_complete, index)):
            return
        fits_codes = args.codes.source and not stored  # to all images that are there, once none is being written
        if fits_codes and not distributed.run_on_main(lambda: all(watcher.is_settled(paths[i]) for i in changes.new)):
            return
    say(f"{len(paths)} images in {folder}: {changes.summary(prune=args.prune)}")
    if changes.unchanged and (args.positions or args.positions_csv):
        say(f"The positions of the {len(changes.unchanged)} unchanged images stay as they are.")

    # ---- Model, and positions
    if chosen or args.model.is_stated or args.codes.source:  # which must be those of the index
        choice, source = args.model.choice, args.model.any_source
        if stored and not args.model.is_stated:
            choice, source = model_of(stored, index, args.model.hub)
        extractor = load_extractor(choice, source, extraction, index=index, num_images=len(chosen))
        config = replace(config, weights=source if isinstance(source, Path) else None)
        described = [paths[i] for i in chosen]
        positions = PositionConfig.parse(config.positions or "auto")
        images, summary = distributed.run_on_main(partial(locate_folder, described, above, positions))
        images_of = f"images of {extractor.config.image_config}; {extractor.model.engine}"
        say(f"{summary}\nModel: {source}, {extractor.model.config.flags}; {images_of}")

        # ---- Features, which go to the index chunk by chunk (under torchrun, of every rank's share)
        pca = find_pca(extractor, PCAConfig(), index)  # an evaluation may have begun the index
        extractor = replace(extractor, projections=Projections(pca=pca))
        extract(with_codes(extractor, args.codes, images, index=index), images, save_to=config)

    if distributed.run_on_main(partial(maintenance.stored_metadata, index)):  # there is something in it
        gone = changes.gone if args.prune else []
        count = distributed.run_on_main(partial(maintenance.finish, index, gone))
        say(f"The index {index} is complete and holds {count} images.")


def say(text: str) -> None:
    """Prints what every rank knows, once."""
    if distributed.is_main():
        print(printable(text), flush=True)


if __name__ == "__main__":
    cli_main(partial(main, args))
