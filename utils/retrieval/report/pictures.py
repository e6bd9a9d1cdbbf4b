"""Pictures of queries and their matches: those of search.py, of evaluations, and at the top of README.md."""

import importlib.util
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from model.errors import InputError
from model.image_files import load_image
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
    key of FRAMES, its position [2] in metres, for a map, and a heading above it, which may be wider.
    """

    image: str | Path | None
    captions: Sequence[str]
    kind: str = "unknown"
    position: np.ndarray | None = None
    heading: str = ""


def arrange(left: Sequence[Shown], groups: Sequence[Sequence[Shown]], columns: int) -> list[list[Shown | None]]:
    """The rows of a picture: at most `columns` matches of a group side by side, and on their left a query and what
    belongs to it, below each other if there are enough rows.
    """
    parts = [group[start : start + columns] for group in groups for start in range(0, len(group), columns)]
    if len(parts) < len(left):
        return [[*left, *part] for part in parts]
    return [[left[i] if i < len(left) else None, *part] for i, part in enumerate(parts)]


@dataclass(frozen=True, kw_only=True)
class Painter:
    """Draws pictures. cell: (width, height) in pixels that an image does not exceed; font_size: in pixels;
    exif_orientation as for load_image.
    """

    cell: tuple[int, int] = (240, 180)
    font_size: int = 14
    exif_orientation: bool = False

    def draw(self, rows: Sequence[Sequence[Shown | None]], *, note: str = "") -> Image.Image:
        """Rows of images with frames, headings and captions, and a note below them. A column without images is narrow.

        A correct match has a green frame and a check mark, a wrong one a red frame and a cross. An unreadable image is
        an empty frame that says so.
        """
        columns = range(max(map(len, rows)))
        used = [any(row[i] for row in rows if i < len(row)) for i in columns]
        widths = [self.cell[0] + 2 * FRAME + GAP if is_used else GAP for is_used in used]
        heights = [self._heights([shown for shown in row if shown]) for row in rows]
        notes = [line for text in note.splitlines() for line in self._wrap(text, sum(widths))]
        below = GAP + sum(map(sum, heights))
        size = (GAP + sum(widths), below + len(notes) * self._line_height + GAP * bool(notes))
        canvas = Image.new("RGB", size, "white")
        y = GAP
        for row, (heading_height, height) in zip(rows, heights, strict=True):
            for i, shown in enumerate(row):
                if shown:
                    corner = GAP + sum(widths[:i]), y + heading_height
                    self._text(canvas, shown.heading, (corner[0], y), bold=True)
                    self._paste(canvas, shown, corner)
            y += heading_height + height
        for i, text in enumerate(notes):
            self._text(canvas, text, (GAP, below + i * self._line_height), color=GREY)
        return canvas

    @property
    def _line_height(self) -> int:
        return round(1.4 * self.font_size)

    def _heights(self, row: Sequence[Shown]) -> tuple[int, int]:
        """Of the headings of a row, and of what is below them."""
        headings = round(1.7 * self.font_size) if any(shown.heading for shown in row) else 0
        captions = max(len(shown.captions) for shown in row)
        return headings, self.cell[1] + 2 * FRAME + 2 + captions * self._line_height + GAP

    def _paste(self, canvas: Image.Image, shown: Shown, corner: tuple[int, int]) -> None:
        """Pastes an image with its frame and captions at a corner (x, y)."""
        (x, y), (width, height) = corner, self.cell
        box = (x, y, x + width + 2 * FRAME - 1, y + height + 2 * FRAME - 1)
        ImageDraw.Draw(canvas).rectangle(box, fill=EMPTY, outline=FRAMES[shown.kind], width=FRAME)
        try:
            if shown.image is not None:
                image = load_image(shown.image, self.cell[::-1], exif_orientation=self.exif_orientation)
                image = ImageOps.contain(image, self.cell)
                offset = [FRAME + (cell - side) // 2 for cell, side in zip(self.cell, image.size, strict=True)]
                canvas.paste(image, (x + offset[0], y + offset[1]))
        except InputError:
            message = self._wrap(printable(f"cannot be read: {shown.image}"), width)
            for i, line in enumerate(message[: height // self._line_height - 1]):
                self._text(canvas, line, (x + 2 * FRAME, y + 2 * FRAME + i * self._line_height))
        y += height + 2 * FRAME + 2
        for caption, mark in zip(
            shown.captions, (MARKS.get(shown.kind, ""), *[""] * len(shown.captions)), strict=False
        ):
            indent = round(_font(self.font_size).getlength(mark))
            self._text(canvas, mark, (x, y), color=FRAMES[shown.kind])
            text = self._fit(" ".join(printable(caption).split()), width + 2 * FRAME - indent)
            self._text(canvas, text, (x + indent, y))
            y += self._line_height

    def _text(
        self, canvas: Image.Image, text: str, corner: tuple[int, int], *, color: str = DARK, bold: bool = False
    ) -> None:
        ImageDraw.Draw(canvas).text(corner, text, fill=color, font=_font(self.font_size, bold))

    def _wrap(self, text: str, width: int) -> list[str]:
        """The text in lines of about this width."""
        return textwrap.wrap(text, int(width / (0.6 * self.font_size)), break_on_hyphens=False)

    def _fit(self, text: str, width: int) -> str:
        """The text, without its middle if it is wider: file names begin and end with what tells them apart."""
        fitting, kept = text, len(text)
        while _font(self.font_size).getlength(fitting) > width and kept > 2:
            kept -= 1
            fitting = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
        return fitting


@lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of matplotlib, which has the marks, and most alphabets. matplotlib itself is not imported."""
    package = importlib.util.find_spec("matplotlib")
    assert package and package.origin, "a requirement"
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / name), size)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG or, if the name ends with .jpg, a JPEG. Raises InputError if the file cannot be written."""
    with atomic_write(path, "wb") as file:
        if path.suffix == ".jpg":
            picture.save(file, format="jpeg", quality=85)
        else:
            picture.save(file, format="png", optimize=True)
