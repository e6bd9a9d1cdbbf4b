"""An index that lives: listing and comparing files, the daily append, merging, compacting, opening and searching.

    python -m benchmarks.bench_index [--images N] [--folder DIR] [--json [FILE]]

The features are made up, so no model runs. The files are real: small JPEG images of 8 x 8 pixels with a GPS position.
"""

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from PIL import ExifTags, Image

from benchmarks.common import add_json_flag, json_file, measure_in_child, report_table
from datasets.config import PositionConfig
from datasets.folder import locate_folder
from datasets.image_set import ImageSet
from datasets.layouts import list_images
from model import GeoLocalizationNet, InputError, ModelConfig
from model.index.files import IndexFiles
from model.index.manifest import CHUNK_SIZE
from model.index.metadata import IndexMetadata
from utils.retrieval.config import ExtractionConfig, IndexConfig
from utils.retrieval.features import Features
from utils.retrieval.index import Index, IndexWriter, maintenance, metadata_of
from utils.retrieval.index.reader import SeveralIndexes, verify_files
from utils.retrieval.search import search_and_rerank
from utils.runtime.flags import ArgumentParser, positive_int
from utils.runtime.script import cli_main

DAILY = 1000  # images that are new, and as many that are gone
FILES_PER_FOLDER, FOLDERS_PER_FOLDER = 1000, 100
K, BATCH = 100, 256
EXIF_SAMPLE = 50_000
POSITIONS = PositionConfig(source="exif")
CORNERS = ((43.0, -1.0), (50.0, 7.0))  # latitude and longitude of the area of made-up positions


@dataclass(frozen=True)
class Photos:
    """Where photos lie, and how many an index holds before the daily append."""

    folder: Path
    count: int

    def path(self, i: int) -> str:
        """The path of a photo."""
        parent = i // FILES_PER_FOLDER
        return f"{self.folder}/{parent // FOLDERS_PER_FOLDER:03d}/{parent:06d}/{i:09d}.jpg"

    @property
    def gone(self) -> range:
        """Photos that the index holds although there are no files of them."""
        return range(0, self.count, self.count // DAILY)

    @property
    def present(self) -> Iterable[int]:
        """Photos of which there are files: those that the index holds, without those gone, and new ones."""
        gone = set(self.gone)
        return (i for i in range(self.count + DAILY) if i not in gone)


# ---- Made-up data


def photo_bytes() -> bytes:
    """A JPEG image of 8 x 8 pixels with a GPS position."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.IFD.GPSInfo.value] = {1: "N", 2: (48.0, 51.0, 30.0), 3: "E", 4: (2.0, 17.0, 40.0)}
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def make_photos(photos: Photos) -> None:
    """Writes the files, if that was not done before: some thousand a second."""
    done = photos.folder / "done.txt"
    if done.exists() and done.read_text() == str(photos.count):
        return
    shutil.rmtree(photos.folder, ignore_errors=True)
    content = photo_bytes()
    for i in photos.present:
        path = photos.path(i)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    done.write_text(str(photos.count))


def make_features(photos: Photos, chunk: range, dim: int) -> Features:
    """Codes [n, 64] and descriptors [n, dim] of a chunk of photos."""
    random = np.random.default_rng(chunk.start)
    images = ImageSet.without_positions([photos.path(i) for i in chunk])
    images = replace(images, degrees=random.uniform(CORNERS[0], CORNERS[1], (len(chunk), 2)))
    codes = random.integers(0, 256, (len(chunk), 64), np.uint8)
    return Features(images, codes, random.standard_normal((len(chunk), dim), np.float32))


def metadata_for(dim: int) -> IndexMetadata:
    """The metadata of an index with a two-branch model and descriptors in half precision."""
    model = GeoLocalizationNet(ModelConfig(backbone="vit-tiny", hashing=True, rerank=True))
    return replace(metadata_of(model, ExtractionConfig()), descriptor_dim=dim, descriptor_dtype="fp16")


def write_index(folder: Path, photos: Photos, *, rows: range, metadata: IndexMetadata) -> None:
    """An index of these photos, or with these too."""
    config = IndexConfig(folder=folder, append=True, root=photos.folder, descriptor_dtype="fp16")
    with IndexWriter(config, metadata) as writer:
        for start in range(rows.start, rows.stop, CHUNK_SIZE):
            chunk = range(start, min(start + CHUNK_SIZE, rows.stop))
            writer.append(make_features(photos, chunk, metadata.descriptor_dim))
        writer.features()  # marks the index as complete


# ---- What is measured


def compare_files(index: Path, photos: Photos, *, check_content: bool = False) -> None:
    """What `build_index.py --append` finds out."""
    changes = maintenance.changes_since(index, list_images(photos.folder), photos.folder, check_content=check_content)
    assert (len(changes.new), len(changes.changed), len(changes.gone)) == (DAILY, 0, DAILY), changes.summary


def append_daily(index: Path, photos: Photos, metadata: IndexMetadata) -> None:
    """`build_index.py --append --prune` without the model."""
    paths = list_images(photos.folder)
    changes = maintenance.changes_since(index, paths, photos.folder, check_content=False)
    described = [paths[i] for i in changes.new]
    images = locate_folder(described, photos.folder, POSITIONS).images
    config = IndexConfig(folder=index, append=True, root=photos.folder, descriptor_dtype="fp16")
    with IndexWriter(config, metadata) as writer:
        assert len(writer.to_extract(images)) == DAILY
        features = make_features(photos, range(photos.count, photos.count + DAILY), metadata.descriptor_dim)
        writer.append(features._replace(images=images))
        writer.features()
    assert maintenance.finish(index, changes.gone) == photos.count


def append_as_before(index: Path, photos: Photos) -> None:
    """What `--append` did before it compared size and time of files: all EXIF data, and all checksums."""
    locate_folder(list_images(photos.folder), photos.folder, POSITIONS)
    verify_files(IndexFiles(index))


def search_index(index: Path, queries: Features) -> None:
    """A search of codes, and re-ranking, in an index that is opened for it."""
    faiss.omp_set_num_threads(1)
    search_and_rerank(Index(index, verify=False).features(), queries, K, rerank_num=K)


def search_both(indexes: list[Path], queries: Features) -> None:
    """The same in several indexes."""
    faiss.omp_set_num_threads(1)
    opened = SeveralIndexes([Index(index, verify=False) for index in indexes])
    search_and_rerank(opened.features(), queries, K, rerank_num=K)


def row(stage: str, function: Callable[[], object], count: int) -> dict[str, object]:
    """A row of the table: the time of a call that deals with so many images, and the memory that it adds."""
    print(f"{stage} ...", flush=True)
    seconds, megabytes = measure_in_child(function, warm=False)
    return {
        "stage": stage,
        "images": count,
        "s": round(seconds, 3),
        "us/image": round(1e6 * seconds / count, 3),
        "peak MB": round(megabytes, 1),
    }


def size_of(folder: Path) -> float:
    """MB (10^6 bytes) of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def rows_of(work: Path, photos: Photos, dim: int) -> Iterable[dict[str, object]]:
    """All rows, in an order in which each stage finds what it needs."""
    metadata, count = metadata_for(dim), photos.count
    halves = {work / "a": range(count // 2), work / "b": range(count // 2, count)}
    index = work / "index"
    first, second = (partial(write_index, to, photos, rows=rows, metadata=metadata) for to, rows in halves.items())
    yield {**row("writing a half", first, count // 2), "index MB": size_of(work / "a")}
    second()
    yield {**row("merging both", lambda: maintenance.merge(list(halves), index), count), "index MB": size_of(index)}
    one, many = (make_features(photos, range(n), dim) for n in (1, BATCH))
    yield row("opening, verifying all", lambda: Index(index), count)
    yield row("opening, --trust_index", lambda: Index(index, verify=False), count)
    yield row("opening, a search", lambda: search_index(index, one), count)
    yield row(f"opening, {BATCH} searches", lambda: search_index(index, many), count)
    yield row("opening both halves, a search", lambda: search_both(list(halves), one), count)
    shutil.rmtree(work / "a")
    shutil.rmtree(work / "b")

    yield row("listing files", lambda: list_images(photos.folder), count)
    sample = list_images(photos.folder)[:EXIF_SAMPLE]
    yield row("reading EXIF", lambda: locate_folder(sample, photos.folder, POSITIONS), len(sample))
    yield row("append as before: EXIF, checksums", lambda: append_as_before(index, photos), count)
    yield row("listing, comparing", lambda: compare_files(index, photos), count)
    yield row("listing, --check_content", lambda: compare_files(index, photos, check_content=True), count)
    yield row(f"append {DAILY} new, prune {DAILY} gone", lambda: append_daily(index, photos, metadata), count)
    yield {**row("compacting", lambda: maintenance.compact(index), count), "index MB": size_of(index)}


def main() -> None:
    parser = ArgumentParser(description="An index that grows, is pruned, merged and compacted, with made-up features.")
    parser.add_argument("--images", type=positive_int, default=1_000_000, help=f"images in the index, at least {DAILY}")
    parser.add_argument("--dim", type=positive_int, default=64, help="dimension of descriptors, in half precision")
    parser.add_argument("--folder", type=Path, help="folder for the files, which are kept (default: a temporary one)")
    add_json_flag(parser)
    args = parser.parse_args()
    if args.images < DAILY:
        raise InputError(f"--images {args.images}: at least {DAILY} are needed, because so many are pruned.")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        work = Path(temporary)
        photos = Photos((args.folder or work) / "photos", args.images)
        start = time.perf_counter()
        make_photos(photos)
        print(f"{args.images:,} files made in {time.perf_counter() - start:.0f} s", flush=True)
        rows = list(rows_of(work, photos, args.dim))
    title = f"An index of {args.images:,} images with {args.dim} dimensions in fp16"
    report_table(title, rows, json_file(args.json, f"index_{args.dim}"))


if __name__ == "__main__":
    cli_main(main)
