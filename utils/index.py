"""An index: the codes, descriptors, names and positions of a database's photos in a folder, which grows piece by piece and outlives a kill.

Format 1, little-endian, no pickle:

    header.json     written once: format, model, settings, columns
    codes.bin       [N, 64] uint8, 512 bits packed (np.packbits order); of models with a binary branch
    descriptors.bin [N, dim] float32 or float16; of models with a float branch
    utms.bin        [N, 2] float64: easting and northing in metres
    photos.txt      absolute paths, UTF-8, one a line
    pieces.jsonl    the journal: a line for each piece of up to 1024 photos: {"photos": how many, "names": bytes of photos.txt,
                    "sha256": {file: checksum of the piece's bytes in it}}

A piece belongs to the index when its whole line is in the journal; what the other files hold beyond that is a broken-off piece, and the
next one overwrites it. So the files are whole at any moment, and readers may read while another process appends.
"""
import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model import CODE_BITS, GeoLocalizationNet, InputError
from utils.features import ExtractionSettings, Features
from utils.files import atomic_write, make_folder

FORMAT = 1
PIECE = 1024  # photos
HEADER, JOURNAL, PHOTOS = "header.json", "pieces.jsonl", "photos.txt"
DESCRIPTOR_DTYPES = {"fp32": "<f4", "fp16": "<f2"}


def make_header(model: GeoLocalizationNet, backbone: str, aggregation: str, weights: Path | None, settings: ExtractionSettings,
                descriptor_dtype: str) -> dict:
    """What an index must know of the model and of how photos become features; weights None: the published ones."""
    columns = {"utms": ["<f8", 2]}
    if model.hashing:
        columns["codes"] = ["|u1", CODE_BITS // 8]
    if model.descriptor_dim:
        columns["descriptors"] = [DESCRIPTOR_DTYPES[descriptor_dtype], model.descriptor_dim]
    return {
        "format": FORMAT,
        "model": {"backbone": backbone, "aggregation": aggregation, "hashing": model.hashing, "rerank": model.rerank,
                  "sha256": fingerprint(model)},
        "settings": {"resize": list(settings.size), "antialias": settings.antialias},
        "columns": columns,
        "weights": str(weights.absolute()) if weights else "published",
    }


def fingerprint(model: GeoLocalizationNet) -> str:
    """SHA-256 of a model's state: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


class Index:
    """An index opened for reading. Descriptors stay on the disk; codes, positions and the names' places take about 90 bytes a photo.

    Attributes: folder; header; codes [N, 64] uint8 or None; descriptors [N, dim], memory-mapped, or None; utms [N, 2] float64 in metres;
    photos, their paths. With `check` every byte is read and its checksum compared. Raises InputError for a folder that is no index, is of
    another format, or is damaged, naming the file.
    """

    def __init__(self, folder: Path, check: bool = True) -> None:
        self.folder = folder
        self.header = read_header(folder)
        self.columns = self.header["columns"]
        pieces, _ = read_journal(folder)
        if not pieces:
            raise InputError(f"the index {folder} holds no photos: was its making broken off at once? Make it anew")
        if check:
            check_pieces(folder, self.columns, pieces)
        self._count = sum(piece["photos"] for piece in pieces)
        self.photos = PhotoNames(folder / PHOTOS, sum(piece["names"] for piece in pieces), self._count)
        self.utms = np.array(self._column("utms"))
        self.codes = np.array(self._column("codes")) if "codes" in self.columns else None
        self.descriptors = self._column("descriptors") if "descriptors" in self.columns else None

    def __len__(self) -> int:
        return self._count

    @property
    def weights(self) -> Path | None:
        """The file of the model's weights when the index was made; None: the published ones."""
        return None if self.header["weights"] == "published" else Path(self.header["weights"])

    def check_made_by(self, header: dict) -> None:
        """Raises InputError where another model, or other settings, than the header's made the index."""
        for part, flags in (("model", "--backbone, --aggregation, --resume, and which script"), ("settings", "--resize and --no_antialias")):
            if self.header[part] != header[part]:
                raise InputError(f"the index {self.folder} was made with another model or resize: {part} "
                                 f"{_differences(self.header[part], header[part])}. Look at {flags}")

    def features(self) -> Features:
        """Codes and descriptors."""
        return Features(self.codes, self.descriptors)

    def _column(self, name: str) -> np.memmap:
        dtype, width = self.columns[name]
        path = self.folder / f"{name}.bin"
        _check_size(path, self._count * width * np.dtype(dtype).itemsize)
        return np.memmap(path, dtype, "r", shape=(self._count, width))


class PhotoNames(Sequence):
    """The lines of a file, read where asked for: of millions of photos, strings would take gigabytes."""

    def __init__(self, path: Path, size: int, count: int) -> None:
        _check_size(path, size)
        with open(path, "rb") as file:
            self._text = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        ends = [np.flatnonzero(np.frombuffer(self._text, np.uint8, min(1 << 20, size - start), start) == ord("\n")) + start
                for start in range(0, size, 1 << 20)]
        self._ends = np.concatenate(ends)
        if len(self._ends) != count:
            raise InputError(f"{path} is damaged: {len(self._ends)} names of {count} photos. Make the index anew")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        end = self._ends[i]
        start = self._ends[i - 1] + 1 if i % len(self) else 0
        return self._text[start:end].decode()


class IndexWriter:
    """Makes an index, or with `append` goes on with the one in the folder if there is one; a context that keeps other writers out.

    Attribute: known, the photos that it holds already. Raises InputError where the folder is in use, cannot be written, holds something
    else, an index of another model or resize, or one whose last pieces are damaged.
    """

    def __init__(self, folder: Path, header: dict, append: bool = False) -> None:
        self.folder = folder
        self.columns = header["columns"]
        make_folder(folder, exist_ok=True)
        self._lock = _lock(folder)
        pieces = []
        if append and (folder / HEADER).exists():
            _check_same_header(folder, read_header(folder), header)
            pieces, journal_size = read_journal(folder)
            check_pieces(folder, self.columns, pieces)
        elif any(path.name != ".lock" for path in folder.iterdir()):
            raise InputError(f"{folder} is not empty: to add to the index in it, or to go on with a broken-off one, give --append")
        else:
            journal_size = 0
            with atomic_write(folder / HEADER) as file:
                json.dump(header, file, indent=2)
        self._count = sum(piece["photos"] for piece in pieces)
        self._names = sum(piece["names"] for piece in pieces)
        self.known = set(PhotoNames(folder / PHOTOS, self._names, self._count)) if pieces else set()
        sizes = {f"{name}.bin": self._count * width * np.dtype(dtype).itemsize for name, (dtype, width) in self.columns.items()}
        self._files = {name: _open_at(folder / name, size) for name, size in {**sizes, PHOTOS: self._names, JOURNAL: journal_size}.items()}

    def append(self, photos: Sequence[str], utms: np.ndarray, features: Features) -> None:
        """Adds a piece: paths of B photos, positions [B, 2] and their features. It is there as a whole or not at all."""
        names = "".join(f"{photo}\n" for photo in photos).encode()
        if names.count(b"\n") != len(photos):
            raise InputError(f"a photo's name holds a line break, which an index cannot keep: {[p for p in photos if chr(10) in p][0]!r}")
        arrays = {"utms": utms, "codes": features.codes, "descriptors": features.descriptors}
        content = {f"{name}.bin": np.ascontiguousarray(arrays[name], dtype).tobytes() for name, (dtype, _) in self.columns.items()}
        content[PHOTOS] = names
        piece = {"photos": len(photos), "names": len(names), "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}}
        for name, data in content.items():
            self._write(name, data)
        self._write(JOURNAL, json.dumps(piece).encode() + b"\n")  # last: from here on the piece belongs to the index

    def _write(self, name: str, data: bytes) -> None:
        file = self._files[name]
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.folder / name}: {error.strerror or error}. The pieces before are whole") from error

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (*self._files.values(), self._lock):
            file.close()


def read_header(folder: Path) -> dict:
    """header.json. Raises InputError where it is missing, unreadable or of another format."""
    path = folder / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version = header["format"]
    except FileNotFoundError:
        raise InputError(f"no index in {folder}: {path} is missing. eval*.py --save_index makes one") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error!r}. Make the index anew") from error
    if version != FORMAT:
        raise InputError(f"the index {folder} is of format {version}; this version reads format {FORMAT}. Make the index anew")
    return header


def read_journal(folder: Path) -> tuple[list[dict], int]:
    """The pieces, and the size in bytes of the journal's whole lines. Raises InputError where a whole line is none of ours."""
    path = folder / JOURNAL
    data = path.read_bytes() if path.exists() else b""
    size = data.rfind(b"\n") + 1
    try:
        pieces = [json.loads(line) for line in data[:size].splitlines()]
        for piece in pieces:
            if piece["photos"] < 1 or piece["names"] < 1 or not isinstance(piece["sha256"], dict):
                raise ValueError("a piece without photos or checksums")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error!r}. Make the index anew") from error
    return pieces, size


def check_pieces(folder: Path, columns: dict, pieces: list[dict]) -> None:
    """Compares every checksum. Raises InputError, which names the file, at the first that differs."""
    row_bytes = {f"{name}.bin": np.dtype(dtype).itemsize * width for name, (dtype, width) in columns.items()}
    total = sum(piece["photos"] for piece in pieces)
    for name in (*row_bytes, PHOTOS):
        path = folder / name
        with open(_existing(path), "rb") as file, tqdm(total=total, desc=f"Checking {name}", unit="photo", leave=False) as bar:
            for piece in pieces:
                data = file.read(piece["names"] if name == PHOTOS else piece["photos"] * row_bytes[name])
                if hashlib.sha256(data).hexdigest() != piece["sha256"].get(name):
                    raise InputError(f"{path} is damaged or cut off: photos {bar.n} to {bar.n + piece['photos'] - 1} have another checksum than "
                                     f"{JOURNAL} says. Make the index anew, or copy it again")
                bar.update(piece["photos"])


def pieces_of(count: int, first: int = 0) -> Iterator[range]:
    """The numbers of `count` photos, from `first` on, in pieces."""
    return (range(start, min(start + PIECE, first + count)) for start in range(first, first + count, PIECE))


def _check_same_header(folder: Path, there: dict, header: dict) -> None:
    for part in ("model", "settings", "columns"):
        if there[part] != header[part]:
            raise InputError(f"--append: the index {folder} was made otherwise: {part} {_differences(there[part], header[part])}")


def _differences(there: dict, asked: dict) -> str:
    keys = [key for key in {**there, **asked} if there.get(key) != asked.get(key)]
    return ", ".join(f"{key} {there.get(key)} (now {asked.get(key)})" for key in keys)


def _lock(folder: Path):
    file = open(folder / ".lock", "w")  # noqa: SIM115 - open as long as the writer
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InputError(f"another process writes to the index {folder}") from error
    return file


def _open_at(path: Path, size: int):
    """The file, cut to a size and opened to write on from there."""
    file = open(path, "ab")  # noqa: SIM115 - open as long as the writer
    file.truncate(size)
    return file


def _check_size(path: Path, size: int) -> None:
    there = _existing(path).stat().st_size
    if there < size:
        raise InputError(f"{path} is cut off: {there} bytes of {size}. Make the index anew, or copy it again")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"the index lacks {path}. Make it anew, or copy it again")
    return path
