"""Export the features of an index, or the predictions of an evaluation, for hloc, COLMAP, NumPy or MSLS."""

from contextlib import closing
from itertools import chain

from utils.cli import ExportArguments, parse_export_features
from utils.retrieval.export import (
    common_folder,
    export_hloc,
    export_msls,
    export_npy,
    export_pairs,
    nearest_others,
    read_predictions,
)
from utils.retrieval.index import Index
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main() -> None:
    args = parse_export_features(__doc__)
    if args.index:
        export_index(args)
    else:
        export_run(args)
    print(printable(f"Exported to {args.output}."))


def export_index(args: ExportArguments) -> None:
    """Features, or each image with the nearest others."""
    assert args.index, "or else a run is exported"
    index = Index(args.index, verify=not args.trust_index, allow_incomplete=args.allow_incomplete_index)
    root = args.image_root or common_folder(index.images.paths)
    print(printable(f"The index {args.index} holds {len(index)} images. They are named relative to {root}."))
    if args.format == "hloc":
        export_hloc(index, args.output, root, dtype=args.descriptor_dtype or "fp16")
    elif args.format == "npy":
        export_npy(index, args.output, root, dtype=args.descriptor_dtype)
    else:
        # Closed, so that its progress bar is gone before an error is printed.
        with closing(nearest_others(index, args.num_matched, rerank_num=args.rerank_num)) as others:
            export_pairs(others, args.output, root)


def export_run(args: ExportArguments) -> None:
    """Each query with its first predictions."""
    assert args.run, "or else an index is exported"
    matches = read_predictions(args.run, args.num_matched)
    print(printable(f"The run {args.run} has {len(matches)} queries."))
    if args.format == "msls":
        export_msls(matches, args.output)
    else:
        root = args.image_root or common_folder(chain.from_iterable([query, *images] for query, images in matches))
        print(printable(f"Images are named relative to {root}."))
        export_pairs(matches, args.output, root)


if __name__ == "__main__":
    cli_main(main)
