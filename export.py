"""Export an index, predictions or a model for other programs: see docs/integrations.md and docs/service.md."""

from utils.cli import export as cli

if __name__ == "__main__":
    args = cli.parse_export(__doc__)  # before the imports that take seconds

from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

from model.weights import load_model
from utils.integrations.shared import common_folder
from utils.retrieval.index import Index
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main(args: cli.AnyExport) -> None:
    EXPORTS[type(args)](args)


def hloc(args: cli.HlocExport) -> None:
    """Descriptors of an index."""
    from utils.integrations.hloc import export_hloc

    index = open_index(args)
    export_hloc(index, args.output, choose_root(args, index.images.paths), dtype=args.descriptor_dtype)
    print(printable(f"Exported to {args.output}."))


def npy(args: cli.NpyExport) -> None:
    """Descriptors, codes and names of an index."""
    from utils.integrations.numpy_files import export_npy

    index = open_index(args)
    export_npy(index, args.output, choose_root(args, index.images.paths), dtype=args.descriptor_dtype)
    print(printable(f"Exported to {args.output}."))


def pairs(args: cli.PairsExport) -> None:
    """Each image of an index with the nearest others, or the loops of a sequence; or each query of an evaluation with
    its first predictions.
    """
    from utils.integrations.pairs import export_pairs, nearest_others, predicted_pairs, sequence_loops

    if args.run:
        predicted = predicted_pairs(args.run, args.num_matched)
        print(printable(f"The run {args.run} has {len(predicted)} queries."))
        paths = chain.from_iterable([query, *images] for query, images in predicted)
        export_pairs(predicted, args.output, choose_root(args, paths))
    elif args.loops:
        index = open_index(args)
        found = sequence_loops(index, args.loops, rerank_num=args.rerank_num)
        print(f"{sum(len(images) for _, images in found)} loops in the sequence of these images.")
        export_pairs(found, args.output, choose_root(args, index.images.paths))
    else:
        index = open_index(args)
        # Closed, so that its progress bar is gone before an error is printed.
        with closing(nearest_others(index, args.num_matched, rerank_num=args.rerank_num)) as others:
            export_pairs(others, args.output, choose_root(args, index.images.paths))
    print(printable(f"Exported to {args.output}."))


def msls(args: cli.MslsExport) -> None:
    """Each query of an evaluation with its first predictions, as keys."""
    from utils.integrations.msls import export_msls
    from utils.integrations.pairs import predicted_pairs

    predicted = predicted_pairs(args.run, args.num_matched)
    print(printable(f"The run {args.run} has {len(predicted)} queries."))
    export_msls(predicted, args.output)
    print(printable(f"Exported to {args.output}."))


def milvus(args: cli.MilvusExport) -> None:
    """A copy of an index in Milvus, for databases that outgrow one machine. The folder stays the original."""
    from utils.integrations.milvus import export_index

    index = Index(args.index, verify=not args.trust_index)
    print(printable(f"The index {args.index} holds {len(index)} images."))
    copied, removed = export_index(index, args.address, append=args.append, shards=args.shards)
    if copied or removed:
        gone = f" {removed} that are gone were removed." if removed else ""
        there = len(index) - copied
        print(f"Exported to {args.address}: {copied} images, {there} were there already.{gone} Verified.")
    else:
        print(f"{args.address} holds this index already. Nothing was changed.")


def onnx(args: cli.OnnxExport) -> None:
    """A model as an ONNX file for images of one size, checked with onnxruntime against PyTorch."""
    from utils.integrations.onnx_export import CHECKED_IMAGES, check_packages, export_onnx
    from utils.retrieval.extraction import settle_images

    check_packages()
    model = load_model(args.model.choice, args.model.source)
    settings = settle_images(args.extraction, model.image_config)
    print(f"Exporting {model.config.flags}; this takes about a minute.", flush=True)
    errors = export_onnx(model, settings, args.output, normalize=args.normalize)
    for name, error in errors.items():
        count = (
            f"{error:.0f} of {512 * CHECKED_IMAGES} bits differ" if name == "code" else f"relative error {error:.1e}"
        )
        print(f"{name}: {count}")
    print(f"Saved {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")


def safetensors(args: cli.SafetensorsExport) -> None:
    """A model as a safetensors file, with the configurations of the model and its images in its metadata."""
    from utils.integrations.safetensors_file import export_safetensors

    model = load_model(args.model.choice, args.model.source)
    export_safetensors(model, args.output, half=args.half)
    print(f"Saved {args.output} ({args.output.stat().st_size / 1e6:.1f} MB): {model.config.flags}")


def open_index(args: cli.ImageExport) -> Index:
    """The index that is exported."""
    assert args.index, "or else a run is exported"
    index = Index(args.index, verify=not args.trust_index, allow_incomplete=args.allow_incomplete_index)
    print(printable(f"The index {args.index} holds {len(index)} images."))
    return index


def choose_root(args: cli.ImageExport, paths: Iterable[str | Path]) -> Path:
    """The folder to which names of images are relative."""
    root = args.image_root or common_folder(paths)
    print(printable(f"Images are named relative to {root}."))
    return root


EXPORTS: dict[type, Callable] = {
    cli.HlocExport: hloc,
    cli.NpyExport: npy,
    cli.PairsExport: pairs,
    cli.MslsExport: msls,
    cli.MilvusExport: milvus,
    cli.OnnxExport: onnx,
    cli.SafetensorsExport: safetensors,
}

if __name__ == "__main__":
    cli_main(partial(main, args))
