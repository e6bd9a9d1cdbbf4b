"""Raw data for the unified dataset: MSLS, Pitts30k and SF-XL in small."""

import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from helpers.processes import ROOT
from PIL import Image

from model.saving import LOCK

GOLDEN = json.loads(gzip.decompress((ROOT / "tests" / "golden" / "unified.json.gz").read_bytes()))
GOLDEN_CITIES = ("trondheim", "bangkok", "pitts30k", "sf_xl")
RAW_HEADER = ",key,lon,lat,ca,captured_at,pano"


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (90, 120, 60)).save(file, "JPEG")
    return file.getvalue()


JPEG = jpeg()


def write_image(path: Path) -> None:
    """A JPEG that tells its own name: decoders ignore what follows the image."""
    path.write_bytes(JPEG + path.name.encode())


def write_msls(root: Path, cities: dict[str, dict[str, list[str]]]) -> None:
    """`cities`: lines of raw.csv for each city and part. The last line ends without a newline."""
    for city, parts in cities.items():
        for part, lines in parts.items():
            images = root / "train_val" / city / part / "images"
            images.mkdir(parents=True)
            (images.parent / "raw.csv").write_text("\n".join([RAW_HEADER, *lines]))
            for line in lines:
                write_image(images / f"{line.split(',')[1]}.jpg")


def write_files(folder: Path, names: Sequence[str]) -> None:
    for path in (folder / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path)


def write_golden_sources(root: Path) -> list[str]:
    """The golden raw data, with images. Returns the flags that name them."""
    raw = GOLDEN["raw"]
    write_msls(root / "msls", raw["msls"])
    for part, names in raw["pitts30k"].items():
        write_files(root / "pitts30k" / "images" / "train" / part, names)
    write_files(root / "sf_xl" / "images" / "train", raw["sf_xl"])
    return [*(f"--{name}={root / name}" for name in ("msls", "pitts30k", "sf_xl")), "--cities", *GOLDEN_CITIES]


def contents(folder: Path) -> dict[str, str]:
    """{relative path: hash} of all files below a folder but the lock. Links count as what they point to."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
