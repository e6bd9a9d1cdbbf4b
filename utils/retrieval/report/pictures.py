"""Pictures of queries and their matches: those of search.py, of evaluations, and at the top of README.md."""

import importlib.util
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from datasets.images import load_image
from model.errors import InputError
from utils.runtime.atomic_files import atomic_write
from utils.runtime.terminal import printable

CORRECT, WRONG = "#009E73", "#CC3311"  # green and red that remain distinct with the common kinds of colour blindness
POSITIVE = "#0072B2"  # blue
DARK, GREY, EMPTY = "#1F2328", "#59636E", "#EEEEEE"
FRAMES = {"query": DARK, "positive": POSITIVE, "correct": CORRECT, "wrong": WRONG, "unknown": GREY}
MARKS = {"correct": "✔ ", "wrong": "✘ "}
FRAME, GAP = 5, 14  # in pixels: width of frames, margin between images


class Shown(NamedTuple):
    """An image as pictures and pages show it: its path (None: an empty frame), lines of text below it, what it is, a
    key of FRAMES, and its position [2] in metres, for a map.
    """

    image: str | Path | None
    captions: Sequence[str]
    kind: str = "unknown"
    position: np.ndarray | None = None


class Line(NamedTuple):
    """A line of a picture: images on the left, such as the query, and groups of matches, each with its heading."""

    left: Sequence[Shown]
    groups: Sequence[tuple[str, Sequence[Shown]]]


@dataclass(frozen=True, kw_only=True)
class PictureStyle:
    """Sizes in pixels: (width, height) that an image does not exceed, and the size of the font."""

    cell: tuple[int, int] = (240, 180)
    font_size: int = 14

    @property
    def line_height(self) -> int:
        """Of a line of text."""
        return round(1.4 * self.font_size)

    @property
    def heading_height(self) -> int:
        """Of a heading, with the space below it."""
        return round(1.7 * self.font_size)

    @property
    def width(self) -> int:
        """From the left edge of one frame to that of the next one."""
        return self.cell[0] + 2 * FRAME + GAP

    def wrap(self, text: str, width: int) -> list[str]:
        """The text in lines that are about as wide."""
        return textwrap.wrap(text, int(width / (0.6 * self.font_size)), break_on_hyphens=False)

    def fit(self, text: str, width: float) -> str:
        """The text, without its middle if it is wider: names begin and end with what tells them apart."""
        font, fitting, kept = _font(self.font_size), text, len(text)
        while font.getlength(fitting) > width and kept > 2:
            kept -= 1
            fitting = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
        return fitting


def broken_lines(left: Sequence[Shown], groups: Mapping[str, Sequence[Shown]], *, columns: int) -> list[Line]:
    """The lines of one query: groups {heading: matches} below each other, at most `columns` matches in a line.

    The images on the left are below each other if there are enough lines.
    """
    parts = [
        (heading, matches[start : start + columns])
        for heading, matches in groups.items()
        for start in range(0, len(matches), columns)
    ]
    if len(parts) < len(left):
        return [Line(left, [parts[0]]), *(Line([], [part]) for part in parts[1:])]
    return [Line(left[i : i + 1], [part]) for i, part in enumerate(parts)]


def draw_matches(
    lines: Sequence[Line], *, note: str = "", style: PictureStyle | None = None, exif_orientation: bool = False
) -> Image.Image:
    """Draws lines of images with frames and captions, and a note below them.

    A correct match has a green frame and a check mark, a wrong one a red frame and a cross. An unreadable image is an
    empty frame that says so. exif_orientation as for load_image.
    """
    style = style or PictureStyle()
    starts = _group_starts(lines, style)
    heights = [_height(line, style) for line in lines]
    notes = [part for text in note.splitlines() for part in style.wrap(text, starts[-1] - 2 * GAP)]
    size = (starts[-1], GAP + sum(heights) + style.line_height * len(notes) + GAP * bool(notes))
    drawing = _Drawing(canvas=Image.new("RGB", size, "white"), style=style, exif_orientation=exif_orientation)
    y = GAP
    for line, height in zip(lines, heights, strict=True):
        top = y + style.heading_height * _has_headings(line)
        for i, shown in enumerate(line.left):
            drawing.paste(shown, (GAP + i * style.width, top))
        for start, (heading, matches) in zip(starts, line.groups, strict=False):
            drawing.text(heading, (start, y), bold=True)
            for i, shown in enumerate(matches):
                drawing.paste(shown, (start + i * style.width, top))
        y += height
    for i, text in enumerate(notes):
        drawing.text(text, (GAP, y + i * style.line_height), color=GREY)
    return drawing.canvas


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG or, if the name ends with .jpg, a JPEG. Raises InputError if the file cannot be written."""
    with atomic_write(path, "wb") as file:
        if path.suffix == ".jpg":
            picture.save(file, format="jpeg", quality=85)
        else:
            picture.save(file, format="png", optimize=True)


def _group_starts(lines: Sequence[Line], style: PictureStyle) -> list[int]:
    """The x at which each group begins, and at which the widest line ends."""
    lengths = [max(len(line.left) for line in lines)]
    for i in range(max(len(line.groups) for line in lines)):
        lengths.append(max(len(line.groups[i][1]) for line in lines if i < len(line.groups)))
    starts = [GAP + lengths[0] * style.width]
    for length in lengths[1:]:
        starts.append(starts[-1] + length * style.width + (GAP if len(lengths) > 2 else 0))
    return starts


def _has_headings(line: Line) -> bool:
    return any(heading for heading, _ in line.groups)


def _height(line: Line, style: PictureStyle) -> int:
    shown = [*line.left, *(match for _, matches in line.groups for match in matches)]
    captions = max(len(image.captions) for image in shown)
    headings = style.heading_height * _has_headings(line)
    return headings + style.cell[1] + 2 * FRAME + style.line_height * captions + 2 + GAP


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """A picture in the making."""

    canvas: Image.Image
    style: PictureStyle
    exif_orientation: bool

    def paste(self, shown: Shown, corner: tuple[int, int]) -> None:
        """Pastes an image with its frame and captions at a corner (x, y)."""
        (x, y), (width, height) = corner, self.style.cell
        box = (x, y, x + width + 2 * FRAME - 1, y + height + 2 * FRAME - 1)
        ImageDraw.Draw(self.canvas).rectangle(box, fill=EMPTY, outline=FRAMES[shown.kind], width=FRAME)
        if shown.image is not None:
            try:
                image = ImageOps.contain(self._load(shown.image), self.style.cell)
            except InputError:
                message = self.style.wrap(printable(f"cannot be read: {shown.image}"), width)
                for i, text in enumerate(message[: height // self.style.line_height - 1]):
                    self.text(text, (x + 2 * FRAME, y + 2 * FRAME + i * self.style.line_height))
            else:
                offset = [FRAME + (cell - side) // 2 for cell, side in zip(self.style.cell, image.size, strict=True)]
                self.canvas.paste(image, (x + offset[0], y + offset[1]))
        below = y + height + 2 * FRAME + 2
        for i, caption in enumerate(shown.captions):
            mark = MARKS.get(shown.kind, "") if i == 0 else ""
            self.text(mark, (x, below + i * self.style.line_height), color=FRAMES[shown.kind])
            used = _font(self.style.font_size).getlength(mark)
            text = self.style.fit(" ".join(printable(caption).split()), width + 2 * FRAME - used)
            self.text(text, (x + round(used), below + i * self.style.line_height))

    def _load(self, path: str | Path) -> Image.Image:
        return load_image(path, self.style.cell[::-1], exif_orientation=self.exif_orientation)

    def text(self, text: str, corner: tuple[int, int], *, color: str = DARK, bold: bool = False) -> None:
        """Writes a line of text, whose upper left corner is (x, y)."""
        font = _font(self.style.font_size, bold)
        ImageDraw.Draw(self.canvas).text(corner, text, fill=color, font=font)


@lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of matplotlib, which has the marks, and most alphabets. matplotlib itself is not imported."""
    package = importlib.util.find_spec("matplotlib")
    assert package and package.origin, "a requirement"
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / name), size)
