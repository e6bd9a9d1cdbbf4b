"""The images that a page shows: each once, as a small JPEG in a data address."""

import base64
import io
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.errors import InputError
from model.image_files import load_image
from utils.runtime.terminal import printable

SIZE = (160, 120)  # (width, height) in pixels that a thumbnail does not exceed
QUALITY = 60
MAX_THREADS = 8


def thumbnails(paths: Sequence[str | Path], *, exif_orientation: bool = False) -> list[dict[str, Any]]:
    """For each image {"src": its data address}, or {"problem": why there is none}."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))  # Pillow releases the interpreter's lock
    try:
        encoded = pool.map(partial(_thumbnail, exif_orientation=exif_orientation), paths)
        return list(tqdm(encoded, desc="Thumbnails", total=len(paths), unit="image", leave=False))
    finally:
        pool.shutdown(cancel_futures=True)  # a stop signal does not wait for the rest


def jpeg_thumbnail(path: str | Path, size: tuple[int, int] = SIZE, *, exif_orientation: bool = False) -> bytes:
    """A small JPEG of an image. size: (width, height) that it does not exceed. Raises InputError as load_image does."""
    image = load_image(path, size[::-1], exif_orientation=exif_orientation)
    image.thumbnail(size)
    image.info.clear()  # Pillow would copy a comment, of any length
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=QUALITY)
    return buffer.getvalue()


def _thumbnail(path: str | Path, exif_orientation: bool) -> dict[str, Any]:
    try:
        data = jpeg_thumbnail(path, exif_orientation=exif_orientation)
    except InputError as error:
        logging.debug("No thumbnail: %s", error)
        return {"problem": printable(error)}
    return {"src": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}
