"""Reading image files. Needs Pillow, and for HEIC pillow-heif."""

import contextlib
import io
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngStream

from .errors import InputError
from .jpeg_files import completed_versions, jpeg_structure, read_jpeg
from .video_files import frame_of, load_frame

FORMATS: tuple[str, ...] = ("JPEG", "PNG")  # Pillow opens MPO, of stereo cameras and phones, as JPEG
NO_HEIC = " For HEIC: pip install -r requirements-heic.txt."
with contextlib.suppress(ImportError):
    from pillow_heif import register_heif_opener  # of requirements-heic.txt

    register_heif_opener()  # turns images upright itself, and removes their EXIF orientation
    FORMATS, NO_HEIC = (*FORMATS, "HEIF"), ""

NO_IMAGE = "this is not a JPEG or PNG file. Convert it, or replace it if it is damaged."
MODES_8_BIT = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")  # convert("RGB") keeps their colours
MODES_16_BIT_GREY = ("I;16", "I")  # of a greyscale PNG, in recent and older versions of Pillow
MAX_PIXELS = 178_956_970  # 2**29 bytes in RGB; no larger images were ever read, since Pillow refuses them by default
MAX_SCANS = 100
MAX_SIDE = 65_535  # of a JPEG; a PNG of few bytes may claim 2**31, for which even the resizing weights are large
# What Pillow and (EOFError, RuntimeError) pillow-heif raise, depending on the damage
DAMAGED = (EOFError, OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error)
TURNS = {  # that make an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SMALLER = f"At most {MAX_PIXELS:,} are read, and {MAX_SIDE:,} per side. Scale it down."

# Pillow warns of damaged EXIF data without the name of the file. What it cannot read counts as absent.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # otherwise Pillow warns of images half that size


def _leave_out_too_large(read: Callable[[Any, int, int], bytes]) -> Callable[[Any, int, int], bytes]:
    """Pillow's reading of a chunk with metadata of a PNG file, without the error for metadata that is too large."""

    def chunk(self: Any, position: int, length: int) -> bytes:
        try:
            return read(self, position, length)
        except ValueError:  # over 1 MB, to which Pillow decompresses it
            self.fp.seek(position)
            return self.fp.read(length)

    return chunk


for _name in ("chunk_tEXt", "chunk_zTXt", "chunk_iTXt", "chunk_iCCP"):  # the pixels need none of them
    setattr(PngStream, _name, _leave_out_too_large(getattr(PngStream, _name)))


def load_image(
    source: str | Path | bytes, draft_size: tuple[int, int] | None = None, *, exif_orientation: bool = False
) -> Image.Image:
    """The decoded RGB image, the first one if a JPEG or PNG file contains several; or the frame of a video, named as
    video_files says. source: a path, or the content of a file.

    Transparency is dropped, and 16 bits are reduced to 8: see docs/datasets.md. Raises InputError, which names the
    file, if it is missing, not a JPEG, PNG or (with pillow-heif) HEIC file, too large, unreadable or truncated.

    exif_orientation: turn the image as its EXIF orientation says. Phones store images as the sensor reads them, and in
    EXIF how they were held. HEIC images are upright in any case.

    With draft_size = (H, W) a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as neither side falls below
    draft_size. This is faster, and differs slightly from decoding and resizing the full image.
    """
    frame = None if isinstance(source, bytes) else frame_of(source)
    if frame:
        return load_frame(frame)
    with open_image(source) as image:
        if "progressive" in image.info:
            _check_scans(source)
        try:
            rgb = _decode(image, draft_size)
        except OSError as error:
            found = _without_end_marker(source, draft_size) if image.format in ("JPEG", "MPO") else None
            if found is None:
                raise error
            rgb = found
        turn = TURNS.get(exif_orientation_of(image)) if exif_orientation else None
        return rgb if turn is None else rgb.transpose(turn)


def _decode(image: Image.Image, draft_size: tuple[int, int] | None) -> Image.Image:
    if draft_size is not None:
        image.draft("RGB", draft_size[::-1])  # ignored by other formats
    return to_rgb(image)


def _check_scans(source: str | Path | bytes) -> None:
    """Raises InputError for a progressive JPEG with so many scans that decoding a small file would take long."""
    scans = jpeg_structure(read_jpeg(source)).scans
    if scans > MAX_SCANS:
        raise InputError(f"it has {scans} scans. At most {MAX_SCANS} are read, and usual files have 10. Save it anew.")


def _without_end_marker(source: str | Path | bytes, draft_size: tuple[int, int] | None) -> Image.Image | None:
    """The image of a JPEG file that lacks its end marker, but no pixels; None if it lacks pixels too."""
    images = []
    for data in completed_versions(read_jpeg(source)):
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            images.append(_decode(image, draft_size))
    return images[0] if images and all(image.tobytes() == images[0].tobytes() for image in images) else None


@contextmanager
def open_image(source: str | Path | bytes) -> Iterator[Image.Image]:
    """The image in a file, of which only the header has been read: its pixels are decoded when the block asks for them.

    Raises InputError as load_image does, also for errors of Pillow in the block.
    """
    name = f"of {len(source)} bytes" if isinstance(source, bytes) else source
    try:
        if not isinstance(source, bytes):
            check_file(source)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            check_size(*image.size)
            yield image
        return
    except FileNotFoundError:
        problem = "there is no such file."
    except UnidentifiedImageError:
        problem = NO_IMAGE + NO_HEIC
    except Image.DecompressionBombError:  # Pillow refuses it before the size is known here
        problem = f"it has more than {2 * MAX_PIXELS:,} pixels. {SMALLER}"
    except InputError as error:
        problem = str(error)
    except DAMAGED as error:
        raise InputError(f"Cannot read the image {name}: {error}. The file may be damaged or truncated.") from error
    raise InputError(f"Cannot read the image {name}: {problem}")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any kind that JPEG and PNG files contain -> RGB, 8 bits per channel. Loads its pixels.

    Raises InputError for other kinds, whose range of values is unknown.
    """
    if image.mode == "RGB":
        image.load()
        return image  # converting would copy it
    if image.mode in MODES_8_BIT:
        image.load()
        image.info.pop("transparency", None)  # Pillow would warn that it is lost
        return image.convert("RGB")
    if image.mode in MODES_16_BIT_GREY:
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # value * 255 / 65535, rounded
        rgb = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        rgb.info = image.info  # with EXIF
        return rgb
    raise InputError(f"its pixels have the type {image.mode}. Expected 8 or 16 bits per channel. Convert it.")


def exif_orientation_of(image: Image.Image) -> int:
    """How the EXIF data of a loaded image says that it must be turned: a key of TURNS, or 1 for not at all.

    1 also if the data is damaged.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except DAMAGED:
        return 1
    return orientation if orientation in TURNS else 1


def check_file(path: str | Path) -> None:
    """Raises InputError for what would block, such as a named pipe, or is no file."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise InputError("this is a folder. Give image files.")
    if not stat.S_ISREG(mode):
        raise InputError("this is a named pipe, socket or device. Give image files.")


def check_size(width: int, height: int) -> None:
    """Raises InputError if an image, of which only the header was read, is too large to decode."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(f"it has {width} x {height} pixels. {SMALLER}")
