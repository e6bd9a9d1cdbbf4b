"""What exports share: names of images, which are paths relative to a folder above all of them; descriptors."""

import os
from collections.abc import Iterable
from pathlib import Path

from model.errors import InputError
from utils.retrieval.features import Descriptors
from utils.retrieval.index import Index


def common_folder(paths: Iterable[str | Path]) -> Path:
    """The deepest folder above all of these absolute paths. Raises InputError if there is none."""
    folders = {os.path.dirname(path) for path in paths}
    try:
        return Path(os.path.commonpath(folders))
    except ValueError as error:  # relative paths, or several drives
        raise InputError(f"The images have no common folder: {error}. Give --image_root.") from None


def relative_name(path: str | Path, root: str | Path) -> str:
    """The path of an image relative to a folder above it, with forward slashes. Raises InputError outside of it."""
    above = os.path.join(os.path.abspath(root), "")
    if not str(path).startswith(above):
        raise InputError(
            f"{path} is not below {root}. Expected the folder of all images. Give a folder above them as --image_root."
        )
    name = str(path).removeprefix(above).replace(os.sep, "/")
    if {"..", "."} & set(name.split("/")):  # whoever reads the names would leave the folder
        raise InputError(f"The path {path} contains '.' or '..', which no index of ours does. Build the index again.")
    return name


def require_utf8(name: str) -> str:
    """The name. Raises InputError for one that is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"The name {name!r} is not UTF-8, which hloc and COLMAP expect. Rename the file.") from None
    return name


def require_descriptors(index: Index) -> Descriptors:
    """The descriptors of an index. Raises InputError if it has none."""
    descriptors = index.features().descriptors
    if descriptors is None:
        raise InputError(
            f"The index {index.folder} has codes only, and no float descriptors. Use an index of a float or two-branch "
            "model, or export the codes with export.py npy, without --descriptor_dtype."
        )
    return descriptors
