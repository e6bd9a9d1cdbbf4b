"""Pictures: the curves of a training run, and images with their matches. Importing this module loads matplotlib."""

import io
import os
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image, ImageDraw, ImageFont, ImageOps  # noqa: E402

from datasets.images import load_image  # noqa: E402
from model.errors import InputError  # noqa: E402
from utils.runtime.atomic_files import atomic_write  # noqa: E402
from utils.runtime.terminal import printable  # noqa: E402

DPI = 110
CORRECT, WRONG = "#009E73", "#CC3311"  # green and red that remain distinct with the common kinds of colour blindness
POSITIVE = "#0072B2"  # blue
DARK, GREY = "#1F2328", "#59636E"
FRAMES = {"query": DARK, "positive": POSITIVE, "correct": CORRECT, "wrong": WRONG, "unknown": GREY}
MARKS = {"correct": "✔ ", "wrong": "✘ "}
CELL, FRAME, LINE, GAP = (240, 180), 5, 20, 12  # of draw_predictions, in pixels: image, frame, line of text, margin
MAX_COLUMNS = 10


class MatchGroup(NamedTuple):
    """The N matches of each of Q queries, best first: heading and unit, and [Q][N] image paths, distances as text, and
    correct (bool).
    """

    heading: str
    unit: str
    images: Sequence[Sequence[str | Path]]
    distances: Sequence[Sequence[str]]
    correct: np.ndarray


class Framed(NamedTuple):
    """An image (None: an empty frame), two lines of text below it, and what it is: a key of FRAMES."""

    image: str | Path | None
    captions: tuple[str, str]
    kind: str


def draw_curves(path: Path, history: list[dict]) -> None:
    """A PNG of losses and validation recalls over the epochs, from the rows of metrics.csv, {column: value}."""
    epochs = [row["epoch"] for row in history]
    recalls = [column for column in history[-1] if "_R@" in column]
    size = (11 if recalls else 6, 4)
    figure, axes = plt.subplots(1, 2 if recalls else 1, figsize=size, squeeze=False, layout="constrained")
    losses = {"loss": "loss"}
    if any(row["constraint"] for row in history):
        losses |= {"multi_similarity": "multi-similarity", "constraint": "similarity constraint"}
    for column, label in losses.items():
        axes[0, 0].plot(epochs, [row[column] for row in history], marker=".", label=label)
    axes[0, 0].set(xlabel="epoch", ylabel="mean over the epoch", title="Training loss", ylim=(0, None))
    for column in recalls:
        axes[0, 1].plot(epochs, [row[column] for row in history], marker=".", label=column.replace("_R@", ", R@"))
    if recalls:
        axes[0, 1].set(xlabel="epoch", ylabel="%", title="Validation recall", ylim=(0, 100))
    for axis in axes.flat:
        axis.legend()
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def draw_matches(
    path: Path, query: str, matches: Sequence[str], *, captions: Sequence[str], exif_orientation: bool = False
) -> None:
    """A PNG of a query and its matches, best first, with captions. An unreadable match is an empty frame.

    exif_orientation as for load_image.
    """
    columns = min(1 + len(matches), 6)
    rows = -(-(1 + len(matches)) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    shown: list[str | Path] = [query, *matches]
    titles = (textwrap.fill(printable(os.path.basename(query)), 32), *captions)
    for axis, image, title in zip(axes.flat, shown, titles, strict=False):
        axis.set_title(title, fontsize=10, parse_math=False)
        try:
            axis.imshow(load_image(image, exif_orientation=exif_orientation))
        except InputError:
            message = textwrap.fill(printable(f"cannot be read: {image}"), 28, break_on_hyphens=False)
            axis.text(0.5, 0.5, message, ha="center", va="center", fontsize=7, parse_math=False)
    _save(figure, path)


def draw_match_groups(path: Path, queries: Sequence[str | Path], groups: Sequence[MatchGroup], *, note: str) -> None:
    """A PNG, 1760 pixels wide, with a row per query: the query, then its matches of each group with their distances.

    A correct match has a green frame and a check mark, a wrong one a red frame and a cross. `note` stands below the
    rows. Raises InputError if an image cannot be read.
    """
    count = max(len(row) for group in groups for row in group.images)
    columns = [1.0] + [0.1, *[1.0] * count] * len(groups)  # widths in images; the narrow ones separate the groups
    width, margin, gap = 16.0, 0.15, 0.13  # in inches, like all below
    image_width = (width - 2 * margin - gap * (len(columns) - 1)) / sum(columns)
    image_height, below_image = 0.75 * image_width, 0.47
    header, footer = 0.86, 0.26 + 0.29 * (1 + note.count("\n"))
    height = header + len(queries) * (image_height + below_image) + footer
    layout = {
        "width_ratios": columns,
        "left": margin / width,
        "right": 1 - margin / width,
        "top": 1 - header / height,
        "bottom": (footer + below_image) / height,
        "wspace": gap / (image_width * sum(columns) / len(columns)),  # a fraction of the mean width
        "hspace": below_image / image_height,
    }
    figure = plt.figure(figsize=(width, height), facecolor="white")
    axes = figure.subplots(len(queries), len(columns), squeeze=False, gridspec_kw=layout)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    _draw_heading(axes[0, :1], "Query", "")
    for axis, query in zip(axes[:, 0], queries, strict=True):
        _draw_framed(axis, query, color=DARK, width=1)
    for first, group in zip(range(2, len(columns), count + 1), groups, strict=True):
        _draw_heading(axes[0, first : first + count], group.heading, f"{group.unit} below each match")
        for row_axes, *row in zip(axes[:, first:], group.images, group.distances, group.correct, strict=True):
            for axis, image, distance, correct in zip(row_axes, *row, strict=False):
                color, mark = (CORRECT, "✔") if correct else (WRONG, "✘")
                _draw_framed(axis, image, color=color, width=4)
                axis.set_xlabel(f"{mark} {distance}", fontsize=17, color=color, labelpad=4)
    note_text = figure.text(margin / width, 0.15 / height, note, fontsize=15, color=GREY, va="bottom", linespacing=1.35)
    note_text.set_parse_math(False)
    _save(figure, path, palette=True)


def draw_predictions(
    path: Path, left: Sequence[Framed], rows: dict[str, Sequence[Framed]], *, exif_orientation: bool = False
) -> None:
    """A JPEG of a query and, where known, its nearest positive, on the left, and rows of predictions with headings.

    At most 10 predictions are side by side. An unreadable image is an empty frame that says so. Pillow draws this:
    matplotlib would take a second for each query.
    """
    lines = []
    for heading, row in rows.items():
        lines += [(heading, row[i : i + MAX_COLUMNS]) for i in range(0, len(row), MAX_COLUMNS)]
    stacked = len(lines) >= len(left)  # the images on the left below each other
    columns = (1 if stacked else len(left)) + max(len(row) for _, row in lines)
    width, height = CELL[0] + 2 * FRAME + GAP, CELL[1] + 2 * FRAME + 3 * LINE + GAP
    canvas = Image.new("RGB", (columns * width + GAP, len(lines) * height + GAP), "white")
    for i, framed in enumerate(left):
        column, line = (0, i) if stacked else (i, 0)
        _paste(canvas, framed, (GAP + column * width, GAP + line * height + LINE), exif_orientation)
    start = GAP + (1 if stacked else len(left)) * width
    for line, (heading, row) in enumerate(lines):
        _text(canvas, heading, (start, GAP + line * height - 4))
        for column, framed in enumerate(row):
            _paste(canvas, framed, (start + column * width, GAP + line * height + LINE), exif_orientation)
    with atomic_write(path, "wb") as file:
        canvas.save(file, format="jpeg", quality=85)


def _paste(canvas: Image.Image, framed: Framed, corner: tuple[int, int], exif_orientation: bool) -> None:
    """Pastes an image with its frame and captions at a corner (x, y)."""
    x, y = corner
    box = (x, y, x + CELL[0] + 2 * FRAME - 1, y + CELL[1] + 2 * FRAME - 1)
    ImageDraw.Draw(canvas).rectangle(box, fill="#EEEEEE", outline=FRAMES[framed.kind], width=FRAME)
    if framed.image is not None:
        try:
            image = load_image(framed.image, CELL[::-1], exif_orientation=exif_orientation)
        except InputError:
            message = textwrap.wrap(printable(f"cannot be read: {framed.image}"), 26, break_on_hyphens=False)
            for i, line in enumerate(message[:8]):
                _text(canvas, line, (x + 10, y + 12 + i * LINE))
        else:
            image = ImageOps.contain(image, CELL)
            offset = [FRAME + (cell - side) // 2 for cell, side in zip(CELL, image.size, strict=True)]
            canvas.paste(image, (x + offset[0], y + offset[1]))
    for i, caption in enumerate(framed.captions):
        mark = MARKS.get(framed.kind, "") if i == 0 else ""
        line = mark + " ".join(printable(caption).split())
        while _font().getlength(line) > CELL[0] + 2 * FRAME:
            line = f"{line[:-2]}…"
        _text(canvas, line, (x, y + CELL[1] + 2 * FRAME + 2 + i * LINE))


def _text(canvas: Image.Image, text: str, corner: tuple[int, int]) -> None:
    ImageDraw.Draw(canvas).text(corner, text, fill=DARK, font=_font())


@lru_cache
def _font() -> ImageFont.FreeTypeFont:
    """matplotlib's font: it has the marks, and most alphabets."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 14)


def _draw_heading(axes: np.ndarray, text: str, unit: str) -> None:
    """A heading, and the unit below it, centred above a row of axes."""
    figure, first, last = axes[0].figure, axes[0].get_position(), axes[-1].get_position()
    x, y, inch = (first.x0 + last.x1) / 2, first.y1, 1 / axes[0].figure.get_figheight()
    figure.text(x, y + 0.42 * inch, text, fontsize=21, color=DARK, weight="bold", ha="center")
    figure.text(x, y + 0.14 * inch, unit, fontsize=16, color=GREY, ha="center")


def _draw_framed(axis: Axes, image: str | Path, *, color: str, width: float) -> None:
    axis.imshow(load_image(image))
    axis.spines[:].set(visible=True, edgecolor=color, linewidth=width)


def _save(figure: Figure, path: Path, palette: bool = False) -> None:
    """palette: reduce the picture to 256 colours, which makes one with many photos a third of the size."""
    with atomic_write(path, "wb") as file:
        if palette:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DPI)
            _reduce_colors(Image.open(buffer).convert("RGB")).save(file, format="png", optimize=True)
        else:
            figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)


def _reduce_colors(picture: Image.Image) -> Image.Image:
    """The picture with the 256 colours that suit it best, from a ninth of its pixels: all of them take much longer."""
    sample = picture.resize((picture.width // 3, picture.height // 3), Image.Resampling.NEAREST)
    colors = sample.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    return picture.quantize(palette=colors, dither=Image.Dither.NONE)
