"""The rows of a CSV file that stand for images, by the names that the file gives them."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from model.errors import InputError
from utils.runtime.text_files import NameTable


def image_names(path: str | Path, folders: Iterable[Path]) -> set[str]:
    """The names by which a list may state an image: its path relative to one of these folders, or absolute."""
    return {os.path.abspath(path), *(os.path.relpath(path, folder) for folder in folders)}


def shared_row_error(path: Path, images: tuple[str | Path, str | Path], folder: Path) -> InputError:
    """Says that a row of a CSV file stands for two images. folder: above all images."""
    return InputError(
        f"{path}: one row stands for both {images[0]} and {images[1]}. Give each its own row, with their paths "
        f"relative to {folder}."
    )


class ImageRows:
    """Finds the one row of a CSV file that stands for an image.

    path: of the file. names: of the images, in the order of the rows. folder: above all images, to which names may be
    relative. content: what a row states, as messages name it. Raises InputError if a name occurs twice.
    """

    def __init__(self, path: Path, names: Sequence[str], *, folder: Path, content: str) -> None:
        self.path, self.folder, self.content = path, folder, content
        names = [os.path.normpath(name) for name in names]
        self._rows = NameTable((name, i) for i, name in enumerate(names))
        self._images: dict[int, str] = {}  # {row: the image that it belongs to}
        if len(set(names)) < len(names):
            duplicate = next(name for name, count in Counter(names).items() if count > 1)
            raise InputError(f"{path} lists {duplicate} more than once. Tell images apart by their folders.")

    def row_of(self, image: str | Path, image_folders: Sequence[Path]) -> int:
        """The number of the row, from 0, of an image below one of these folders, to which its name may be relative.

        Raises InputError if there is none, or more than one, or if the row stands for another image too.
        """
        folders = (self.folder, *image_folders)
        rows = list(self._rows.find(*image_names(image, folders)))
        if len(rows) != 1:
            problem = f"has no {self.content} for" if not rows else f"has two {self.content}s for"
            names = dict.fromkeys(os.path.relpath(image, folder) for folder in folders)
            expected = [name for name in names if not name.startswith(os.pardir)] or [os.path.abspath(image)]
            raise InputError(
                f"{self.path} {problem} {image}. Expected one row whose column image is {' or '.join(expected)}."
            )
        other = self._images.setdefault(rows[0], os.path.abspath(image))
        if other != os.path.abspath(image):
            raise shared_row_error(self.path, (other, image), self.folder)
        return rows[0]
