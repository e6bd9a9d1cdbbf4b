"""What a service may be asked, and what it shows."""

from dataclasses import dataclass
from pathlib import Path

from utils.runtime.flags import flag, positive_float, positive_int, switch


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """queue: images that wait or are computed at a time; max_bytes, max_pixels: of an image that is sent;
    upload_seconds: within which it must have arrived. writable: images may be added and removed. show_paths: answers
    name the files of images with their folders. examples: a folder of images to try, on the page.
    """

    queue: int = flag(
        "images that may wait to be described; beyond that, requests are answered with 503 and Retry-After",
        type=positive_int,
        default=64,
    )
    max_bytes: int = flag("of an image that is sent", type=positive_int, default=32 << 20)
    max_pixels: int = flag("of an image that is sent", type=positive_int, default=64_000_000)
    upload_seconds: float = flag(
        "time within which a request must have arrived", type=positive_float, default=30.0, metavar="SECONDS"
    )
    writable: bool = switch("let requests add images to the index, and remove them")
    show_paths: bool = switch("name images by their whole paths, not by their file names alone")
    examples: Path | None = flag("a folder with images to try, which the page shows", default=None, metavar="DIR")
