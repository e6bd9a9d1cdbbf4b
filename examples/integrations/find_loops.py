"""Find the loops of a video, or of a folder of frames: where the camera returns to a place.

    python -m examples.integrations.find_loops drive.mp4 --max_distance 0.9 --output loops.png

Prints the loops, and draws them in red on the trajectory, which begins at the black dot. Right ones look like dots, and
wrong ones like lines. Frames without positions in their names (@easting@northing@...) lie on a circle, clockwise.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from datasets.file_names import find_utm_position, order_in_sequence
from datasets.layouts import list_source
from model import PlaceRecognizer
from model.zoo import DEFAULT_MODEL
from utils.runtime.flags import ArgumentParser, non_negative_int, positive_float, positive_int
from utils.runtime.script import cli_main


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="VIDEO_OR_FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the drawing: a PNG or SVG file")
    parser.add_argument("--max_distance", type=positive_float, required=True, help="of the two frames of a loop")
    parser.add_argument("--min_gap", type=positive_int, default=50, help="frames between them (default: %(default)s)")
    text = "of loops closer than this at both ends, the nearest one stays (default: %(default)s)"
    parser.add_argument("--suppress", type=non_negative_int, default=25, help=text)
    parser.add_argument("--fps", type=positive_float, default=1.0, help="of a video (default: %(default)s)")
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME_OR_FILE", help="(default: %(default)s)")
    args = parser.parse_args()

    recognizer = PlaceRecognizer(args.model)
    paths = sorted(list_source(args.source, fps=args.fps), key=order_in_sequence)
    for path in tqdm(paths, desc="Describing", unit="frame"):
        recognizer.add(path)
    loops = recognizer.find_loops(max_distance=args.max_distance, min_gap=args.min_gap, suppress=args.suppress)
    for later, earlier, distance in loops:
        print(f"{Path(paths[later]).name} {Path(paths[earlier]).name} {distance:.3f}")
    print(f"{len(loops)} loops in {len(paths)} frames")

    positions = [find_utm_position(path) for path in paths]
    angles = np.linspace(0, 2 * np.pi, len(paths), endpoint=False)
    circle = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    track = circle if None in positions else np.array(positions) - positions[0]  # metres from the start
    figure = Figure(figsize=(8, 8), layout="tight")
    axes = figure.add_subplot(aspect="equal", title=f"{len(loops)} loops in {len(paths)} frames")
    axes.plot(*track.T, color="0.7", marker=".")
    axes.plot(*track[0], color="black", marker="o")  # the start
    for later, earlier, _ in loops:
        axes.plot(*track[[later, earlier]].T, color="red", marker="o", markersize=4)
    figure.savefig(args.output, dpi=150)


if __name__ == "__main__":
    cli_main(main)
