"""Describe image files with a published model or one of yours, and compare them with each other.

python -m examples.describe_image street.jpg same_street.jpg another_street.jpg
python -m examples.describe_image street.jpg --model my_run/best_model.pth --output features.npz
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from datasets.resizing import resize_image
from model import load_any_model
from model.image_files import load_image
from model.images import normalize
from model.zoo import DEFAULT_MODEL
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import settle_images
from utils.runtime.atomic_files import atomic_write, check_output
from utils.runtime.flags import ArgumentParser
from utils.runtime.script import cli_main


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    text = "a published model, which is downloaded once, or a model's file (default: %(default)s)"
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME_OR_FILE", help=text)
    text = "size in pixels (height width), multiples of 14 (default: that of the model, otherwise 322 322)"
    parser.add_argument("--resize", type=int, nargs=2, metavar=("H", "W"), help=text)
    parser.add_argument("--output", type=Path, metavar="FILE.npz", help="save the features as NumPy arrays")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    args = parser.parse_args()
    if args.output:
        check_output(args.output, overwrite=args.overwrite)

    # ---- Model, and images as it was validated with: from files to a batch [B, 3, H, W]
    model = load_any_model(args.model)
    config = settle_images(ExtractionConfig(resize=args.resize and tuple(args.resize)), model.image_config)
    size, antialias = config.image_config.resize, config.image_config.antialias
    images = torch.stack(
        [resize_image(load_image(path, exif_orientation=True), size, antialias=antialias) for path in args.images]
    )

    # ---- A float model returns descriptors; a hashing-only one logits and codes; a two-branch one all three
    with torch.inference_mode():
        outputs = model(normalize(images))
    features = {"descriptor": outputs} if isinstance(outputs, torch.Tensor) else outputs._asdict()
    features.pop("logits", None)

    # ---- Compare: descriptors have length 1, so that their product is the cosine; codes differ in some of 512 bits
    for name, values in features.items():
        print(f"{name}: {values.shape[0]} x {values.shape[1]}")
    for j, path in enumerate(args.images[1:], start=1):
        comparisons = []
        if "descriptor" in features:
            comparisons.append(f"cosine similarity {features['descriptor'][0] @ features['descriptor'][j]:.3f}")
        if "code" in features:
            comparisons.append(f"{int((features['code'][0] != features['code'][j]).sum())} of 512 bits differ")
        print(f"{args.images[0]} and {path}: {', '.join(comparisons)}")

    if args.output:
        arrays: dict = {
            "paths": list(map(str, args.images)),
            **{name: values.numpy() for name, values in features.items()},
        }
        with atomic_write(args.output, "wb", new=not args.overwrite) as file:
            np.savez(file, **arrays)
        print(f"Saved {args.output}")


if __name__ == "__main__":
    cli_main(main)
