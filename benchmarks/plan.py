"""What an index of many images takes: hours, disk, memory and shards, extrapolated from the measurements in results/.

    python -m benchmarks.plan --images 10e6 --device h200 [--cores N] [--dim N] [--descriptor_dtype TYPE]

Each stage states the machine of its rate. ASSUMPTIONS has what the extrapolation takes for granted.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, number
from model.index.metadata import DESCRIPTOR_DTYPES, RECORD

INDEX = "epyc-avx512bf16"  # the machine of index_*.json
CODE_BYTES, PATH_BYTES, MANIFEST_BYTES = 64, 60, 1  # of an image; the last two about
MILVUS_ROW_BYTES = 165  # of codes, in the memory of query nodes: id, code, path, position
IMAGES_PER_SHARD, MAX_SHARDS = 64_000_000, 16
DESCRIPTORS = {"base": 2048, "large": 4096}
ASSUMPTIONS = """Assumptions:
* Times grow in proportion to the number of images, and those of opening, writing, merging and compacting linearly with
  the bytes of an image, between and beyond the measured dimensions.
* Files are on a local disk, and names and index in the page cache, as they were measured. A network file system takes
  longer for each file; reading from a disk adds the bytes divided by its rate.
* Photos have 640 x 480 pixels. With 1600 x 1200 preparing them takes three times as long.
* Preparing images overlaps with the model, listing, EXIF data and writing do not. More cores are used in full.
* Searches are exact, of one query at a time, on two cores."""


@dataclass(frozen=True)
class Device:
    """A machine that extracts: its folder in results/, the row of its extract.json for each size of model, and the
    cores with which that was measured. prepares: whether the model's time contains reading and resizing the images.
    """

    kind: str
    rows: dict[str, str]
    cores: int
    prepares: bool


DEVICES = {
    "cpu": Device("xeon-amx", {"base": "base, --precision bf16"}, cores=2, prepares=True),
    "h200": Device("nvidia-h200", {"base": "base, bf16", "large": "large, bf16"}, cores=16, prepares=False),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings: number of images, device, size of model, cores, and type and dimension of descriptors."""

    images: int
    device: str
    model: str
    cores: int
    descriptor_dtype: str

    @property
    def descriptor_bytes(self) -> int:
        """Bytes of a descriptor, with its scale."""
        dtype = np.dtype(DESCRIPTOR_DTYPES[self.descriptor_dtype])
        return DESCRIPTORS[self.model] * dtype.itemsize + 4 * (self.descriptor_dtype == "int8")

    @property
    def image_bytes(self) -> int:
        """Bytes of an image in the files of an index."""
        return RECORD.itemsize + CODE_BYTES + self.descriptor_bytes + PATH_BYTES + MANIFEST_BYTES

    @property
    def shards(self) -> int:
        """Of a copy in Milvus."""
        return min(MAX_SHARDS, math.ceil(self.images / IMAGES_PER_SHARD))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: seconds in all; the machine of its rate; and whether it is part of building the index."""

    name: str
    seconds: float
    machine: str
    builds: bool = False

    def cells(self, images: int) -> dict[str, str]:
        """The row of the table."""
        rate = f"{1e6 * self.seconds / images:,.3g} us" if images else ""
        return {"stage": self.name, "time": duration(self.seconds), "an image": rate, "measured on": self.machine}


# ---- Measurements


def result(kind: str, name: str) -> dict[str, Any]:
    """A file of measurements."""
    return json.loads((RESULTS / kind / f"{name}.json").read_text())


def machine_of(kind: str, name: str) -> str:
    """The machine of a file of measurements, and the number of its cores."""
    machine = result(kind, name)["machine"]
    return f"{kind}, {machine['cores']} cores"


def value_of(kind: str, name: str, *, first: str, column: str) -> float:
    """A figure: the row that begins with this value, and its column."""
    (row,) = (row for row in result(kind, name)["rows"] if next(iter(row.values())) == first)
    return row[column]


def index_seconds(stage: str, plan: Plan) -> float:
    """Seconds an image that a stage of bench_index takes, by the bytes of a descriptor."""
    widths, seconds = [], []
    for path in sorted((RESULTS / INDEX).glob("index_*.json")):
        widths.append(2 * int(path.stem.removeprefix("index_")))  # of half precision
        seconds.append(1e-6 * value_of(INDEX, path.stem, first=stage, column="us/image"))
    slope, base = np.polyfit(widths, seconds, 1)
    return float(base + slope * plan.descriptor_bytes)


def extraction_seconds(plan: Plan) -> tuple[float, float]:
    """Seconds an image that its preparation takes on all cores, and that the model takes."""
    device = DEVICES[plan.device]
    model = 1e-3 * value_of(device.kind, "extract", first=device.rows[plan.model], column="ours")
    if device.prepares:
        return 0.0, model * device.cores / plan.cores
    (rate,) = (row for row in result("xeon-amx", "loader")["rows"] if "evaluation" in row["input"] and "640" in row["input"])
    return 16 / plan.cores / rate["images/s, 16 cores (estimate)"], model


def stages(plan: Plan) -> Iterator[Stage]:
    """All stages."""
    index_machine, device = machine_of(INDEX, "index_64"), DEVICES[plan.device]

    def of_index(name: str, measured: str, *, builds: bool = False) -> Stage:
        return Stage(
            name=name, seconds=plan.images * index_seconds(measured, plan), machine=index_machine, builds=builds
        )

    yield of_index("listing the files", "listing files", builds=True)
    yield of_index("reading EXIF positions", "reading EXIF", builds=True)
    prepared, computed = (plan.images * seconds for seconds in extraction_seconds(plan))
    if prepared:
        cores = f"xeon-amx, {plan.cores} cores (estimate)"
        yield Stage(name="decoding and resizing", seconds=prepared, machine=cores, builds=prepared >= computed)
    name = "extraction, decoding included" if device.prepares else "extraction"
    machine = f"{device.kind}, {device.cores} cores"
    yield Stage(name=name, seconds=computed, machine=machine, builds=computed > prepared)
    yield of_index("writing the index", "writing", builds=True)
    yield of_index("opening and verifying it", "opening, verifying all")
    yield of_index("opening it, --trust_index", "opening, --trust_index")
    per_code = 1e-3 * value_of("xeon-avx512", "retrieval_large", first="exact, 10,000,000 codes", column="baseline") / 10e6
    yield Stage(name="a search", seconds=plan.images * per_code, machine=machine_of("xeon-avx512", "retrieval_large"))
    yield of_index("daily append, without the new images", "listing, comparing")
    yield of_index("merging two halves", "merging both")
    yield of_index("compacting", "compacting")


# ---- The table


def duration(seconds: float) -> str:
    """Seconds as text, in the unit that suits them."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * length:
            return f"{number(float(f'{seconds / length:.3g}'))} {unit}"
    return f"{1e3 * seconds:.3g} ms"


def size(count: float) -> str:
    """Bytes as text."""
    for unit, length in (("TB", 1e12), ("GB", 1e9)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return f"{count / 1e6:,.0f} MB"
