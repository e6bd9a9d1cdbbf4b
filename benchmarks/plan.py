"""What an index of many images takes: hours, disk, memory and shards, extrapolated from the measurements in results/.

    python -m benchmarks.plan --images 10e6 --device h200 [--model base] [--cores N] [--descriptor_dtype TYPE]

Each stage states the machine of its rate. ASSUMPTIONS has what the extrapolation takes for granted.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, markdown_table, number
from model.config import DESCRIPTOR_DTYPES
from model.errors import InputError
from model.index.metadata import RECORD
from utils.runtime.flags import ArgumentParser, positive_float, positive_int
from utils.runtime.script import cli_main

INDEX, LOADER, SEARCHED = "epyc-avx512bf16", "xeon-amx", "xeon-avx512"  # machines in results/ of the rates
LOADED = "evaluation at 322 x 322, images of 640 x 480"
LARGEST = "index_64"
APPENDING = "append 1000 new, prune 1000 gone"
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
    """The settings: number of images, device, size of the model, cores, and type of descriptors.

    Raises InputError for a model that was not measured on the device.
    """

    images: int
    device: str
    model: str
    cores: int
    descriptor_dtype: str

    def __post_init__(self) -> None:
        measured = DEVICES[self.device].rows
        if self.model not in measured:
            raise InputError(f"--model {self.model} was not measured on {self.device}, but {', '.join(measured)} was.")

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
    def disk_bytes(self) -> int:
        """Bytes of the folder of an index."""
        return self.images * self.image_bytes

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
        return {
            "stage": self.name,
            "time": duration(self.seconds),
            "us an image": number(float(f"{1e6 * self.seconds / images:.3g}")),
            "measured on": self.machine,
        }


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
    """Seconds an image of a stage of bench_index, on a line through those measured with other descriptors."""
    names = sorted(path.stem for path in (RESULTS / INDEX).glob("index_*.json"))
    widths = [2.0 * int(name.removeprefix("index_")) for name in names]  # bytes, in half precision
    slope, base = np.polyfit(widths, [value_of(INDEX, name, first=stage, column="us/image") for name in names], 1)
    return 1e-6 * float(base + max(slope, 0) * plan.descriptor_bytes)


def index_memory(stage: str, plan: Plan) -> float:
    """Bytes at the peak of a stage of bench_index, which do not depend on the descriptors: these stay on the disk."""
    measured = {column: value_of(INDEX, LARGEST, first=stage, column=column) for column in ("peak MB", "images")}
    return 1e6 * plan.images * measured["peak MB"] / measured["images"]


def extraction_seconds(plan: Plan) -> tuple[float, float]:
    """Seconds an image that its preparation takes on all cores, and that the model takes."""
    device = DEVICES[plan.device]
    model = 1e-3 * value_of(device.kind, "extract", first=device.rows[plan.model], column="ours")
    if device.prepares:
        return 0.0, model * device.cores / plan.cores
    per_second = value_of(LOADER, "loader", first=LOADED, column="images/s, 16 cores (estimate)")
    return 16 / plan.cores / per_second, model


def stages(plan: Plan) -> Iterator[Stage]:
    """All stages."""
    index_machine, device = machine_of(INDEX, LARGEST), DEVICES[plan.device]

    def of_index(name: str, measured: str, *, builds: bool = False) -> Stage:
        seconds = plan.images * index_seconds(measured, plan)
        return Stage(name=name, seconds=seconds, machine=index_machine, builds=builds)

    yield of_index("listing the files", "listing files", builds=True)
    yield of_index("reading EXIF positions", "reading EXIF", builds=True)
    prepared, computed = (plan.images * seconds for seconds in extraction_seconds(plan))
    if prepared:
        machine = f"{LOADER}, estimate for {plan.cores} cores"
        yield Stage(name="decoding and resizing", seconds=prepared, machine=machine, builds=prepared >= computed)
    name = "decoding, resizing, extraction" if device.prepares else "extraction"
    machine = f"{device.kind}, {device.cores} cores"
    yield Stage(name=name, seconds=computed, machine=machine, builds=computed > prepared)
    yield of_index("writing the index", "writing a half", builds=True)
    yield of_index("opening it, all checksums verified", "opening, verifying all")
    yield of_index("opening it, --trust_index", "opening, --trust_index")
    per_code = 1e-3 * value_of(SEARCHED, "retrieval_large", first="exact, 10,000,000 codes", column="baseline") / 10e6
    yield Stage(name="a search", seconds=plan.images * per_code, machine=machine_of(SEARCHED, "retrieval_large"))
    yield of_index("--append --prune, apart from extraction", APPENDING)
    yield of_index("--merge of two halves", "merging both")
    yield of_index("--compact", "compacting")


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


def text_of(plan: Plan) -> str:
    """The plan as Markdown."""
    rows = list(stages(plan))
    built = sum(stage.seconds for stage in rows if stage.builds)
    facts = [
        {"": "building the index, in all", "needs": duration(built)},
        {"": "disk, folder", "needs": size(plan.disk_bytes)},
        {"": "disk, while it is merged or compacted", "needs": size(2 * plan.disk_bytes)},
        {"": "memory, search", "needs": size(index_memory("opening, a search", plan))},
        {"": "memory, --append", "needs": size(index_memory(APPENDING, plan))},
        {"": "memory for codes, Milvus", "needs": size(plan.images * MILVUS_ROW_BYTES)},
        {"": "shards, Milvus", "needs": str(plan.shards)},
    ]
    title = (
        f"{plan.images:,} images; {plan.device}, {plan.cores} cores; {plan.model} model, {DESCRIPTORS[plan.model]} "
        f"dimensions in {plan.descriptor_dtype}: {plan.image_bytes:,} bytes an image"
    )
    tables = [markdown_table([stage.cells(plan.images) for stage in rows]), markdown_table(facts)]
    return "\n\n".join([title, *tables, ASSUMPTIONS])


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_float, default=10e6, help="number of images, such as 10e6")
    parser.add_argument("--device", choices=tuple(DEVICES), default="h200", help="what extracts")
    parser.add_argument("--model", choices=tuple(DESCRIPTORS), default="base", help="size of the model")
    parser.add_argument("--cores", type=positive_int, help="CPU cores (default: 2 for cpu, 16 for h200)")
    parser.add_argument("--descriptor_dtype", choices=tuple(DESCRIPTOR_DTYPES), default="fp16", help="in the index")
    args = parser.parse_args()
    plan = Plan(
        images=max(1, round(args.images)),
        device=args.device,
        model=args.model,
        cores=args.cores or DEVICES[args.device].cores,
        descriptor_dtype=args.descriptor_dtype,
    )
    print(text_of(plan))


if __name__ == "__main__":
    cli_main(main)
