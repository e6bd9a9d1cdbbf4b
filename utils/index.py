"""An index: the codes, descriptors, names and positions of a database's photos in a folder, which grows piece by piece and outlives a kill.

Format 1, little-endian, no pickle:

    header.json     written once: format, model, settings, precision, columns, weights (the file of the model's, or "published")
    codes.bin       [N, 64] uint8, 512 bits packed (np.packbits order); of models with a binary branch
    descriptors.bin [N, dim] float32 or float16; of models with a float branch
    utms.bin        [N, 2] float64: easting and northing in metres
    photos.txt      absolute paths, UTF-8 (bytes that are none as the system gives them), one a line
    pieces.jsonl    the journal: a line for each piece of up to 1024 photos: {"photos": how many, "names": bytes of photos.txt,
                    "sha256": {file: checksum of the piece's bytes in it, and of the whole header.json}}

A piece belongs to the index when its whole line is in the journal; what the other files hold beyond that, less than a piece, is a
broken-off one, and the next overwrites it. So the files are whole at any moment, and readers may read while another process appends.
"""
import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from model import CODE_BITS, GeoLocalizationNet, InputError
from utils.features import ExtractionSettings, Features
from utils.files import atomic_write, make_folder

FORMAT = 1
PIECE = 1024  # photos
NAMES_BLOCK = 1 << 20  # bytes of names that are looked through at once
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
        "precision": settings.precision,
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
    """An index opened for reading. Descriptors and names stay on the disk; codes, positions and the names' places take 88 bytes a photo.

    Attributes: folder; header; codes [N, 64] uint8 or None; descriptors [N, dim], memory-mapped, or None; utms [N, 2] float64 in metres;
    photos, their paths. With `check` every byte is read and its checksum compared. Raises InputError for a folder that is no index, is of
    another format, or is damaged, naming the file.
    """

    def __init__(self, folder: Path, check: bool = True) -> None:
        self.folder = folder
        self.header = read_header(folder)
        self.columns = self.header["columns"]
        pieces, _ = read_journal(folder)
        self._count = sum(piece["photos"] for piece in pieces)
        check_sizes(folder, self.columns, self._count)
        if not pieces:
            raise InputError(f"the index {folder} holds no photos: was its making broken off at once? Make it anew")
        if check:
            check_pieces(folder, self.columns, pieces)
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
        _compare_headers(self.header, header, ("model", "settings"), f"the index {self.folder} was made with another model or resize")

    def features(self) -> Features:
        """Codes and descriptors."""
        return Features(self.codes, self.descriptors)

    def _column(self, name: str) -> np.memmap:
        dtype, width = self.columns[name]
        return np.memmap(self.folder / f"{name}.bin", dtype, "r", shape=(self._count, width))


class PhotoNames(Sequence):
    """The lines of a file, read where asked for: of millions of photos, strings would take gigabytes."""

    def __init__(self, path: Path, size: int, count: int) -> None:
        _check_size(path, size)
        with open(path, "rb") as file:  # read, not mapped: pages that were looked at would stay in memory
            ends = [np.flatnonzero(np.frombuffer(file.read(min(NAMES_BLOCK, size - start)), np.uint8) == ord("\n")) + start
                    for start in range(0, size, NAMES_BLOCK)]
            self._text = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        self._ends = np.concatenate(ends)
        if len(self._ends) != count:
            raise InputError(f"{path} is damaged: {len(self._ends)} names of {count} photos. Make the index anew")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        end = self._ends[i]
        start = self._ends[i - 1] + 1 if i % len(self) else 0
        return os.fsdecode(self._text[start:end])


class IndexWriter:
    """Makes an index, or with `append` goes on with the one in the folder if there is one; a context that keeps other writers out.

    Attribute: known, the photos that it holds already. Raises InputError where the folder is in use, cannot be written, or holds something
    else, an index that is damaged or one made with another model, resize, precision or type of descriptors.
    """

    def __init__(self, folder: Path, header: dict, append: bool = False) -> None:
        self.folder = folder
        self.columns = header["columns"]
        _make_index_folder(folder, append)
        self._lock = _lock(folder)
        if (folder / HEADER).exists():
            _compare_headers(read_header(folder), header, ("model", "settings", "precision", "columns"),
                             f"--append: the index {folder} was made otherwise")
        else:
            with atomic_write(folder / HEADER) as file:
                json.dump(header, file, indent=2)
        pieces, journal_size = read_journal(folder)
        count, names = (sum(piece[what] for piece in pieces) for what in ("photos", "names"))
        check_sizes(folder, self.columns, count)
        check_pieces(folder, self.columns, pieces)
        self.known = set(PhotoNames(folder / PHOTOS, names, count)) if pieces else set()
        self._header_sha256 = _sha256(folder / HEADER)
        sizes = {file: count * size for file, size in row_bytes(self.columns).items()}
        self._files = {name: _open_at(folder / name, size) for name, size in {**sizes, PHOTOS: names, JOURNAL: journal_size}.items()}

    def append(self, photos: Sequence[str], utms: np.ndarray, features: Features) -> None:
        """Adds a piece: paths of B photos, positions [B, 2] and their features. It is there as a whole or not at all."""
        names = os.fsencode("".join(f"{photo}\n" for photo in photos))
        if names.count(b"\n") != len(photos):
            raise InputError(f"a photo's name holds a line break, which an index cannot keep: {[p for p in photos if chr(10) in p][0]!r}")
        arrays = {"utms": utms, "codes": features.codes, "descriptors": features.descriptors}
        content = {f"{name}.bin": np.ascontiguousarray(arrays[name], dtype).tobytes() for name, (dtype, _) in self.columns.items()}
        assert [len(data) for data in content.values()] == [len(photos) * size for size in row_bytes(self.columns).values()], "a row a photo"
        content[PHOTOS] = names
        checksums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        piece = {"photos": len(photos), "names": len(names), "sha256": {**checksums, HEADER: self._header_sha256}}
        for name, data in content.items():
            self._write(name, data)
        self._write(JOURNAL, json.dumps(piece).encode() + b"\n")  # last: from here on the piece belongs to the index

    def _write(self, name: str, data: bytes) -> None:
        file = self._files[name]
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest):]
            os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.folder / name}: {error.strerror or error}. An index to keep is whole up to the last piece, and "
                             "goes on from there with --append") from error

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
        if header["format"] != FORMAT:
            raise InputError(f"the index {folder} is of format {header['format']}; this version reads format {FORMAT}. Make the index anew")
        _check_header(header)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no index in {folder}: {path} is missing. eval*.py --save_index makes one") from None
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error!r}. Make the index anew, or copy it again") from error
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


def row_bytes(columns: dict) -> dict[str, int]:
    """{file: bytes of a photo}."""
    return {f"{name}.bin": np.dtype(dtype).itemsize * width for name, (dtype, width) in columns.items()}


def check_sizes(folder: Path, columns: dict, count: int) -> None:
    """Raises InputError where files are shorter than `count` photos, or a piece or more longer: then the journal is not theirs."""
    for name, size in row_bytes(columns).items():
        path = folder / name
        if count:
            _check_size(path, count * size)
        there = path.stat().st_size if path.exists() else 0
        if there > (count + PIECE) * size:
            raise InputError(f"{folder / JOURNAL} is missing or cut off: {path} holds {there // size} photos, and the journal {count}. "
                             "Copy the index again, or make it anew")


def check_pieces(folder: Path, columns: dict, pieces: list[dict]) -> None:
    """Compares every checksum. Raises InputError, which names the file, at the first that differs."""
    header = _sha256(folder / HEADER)
    if any(piece["sha256"].get(HEADER) != header for piece in pieces):
        raise InputError(f"{folder / HEADER} is damaged: it has another checksum than {JOURNAL} says. Make the index anew, or copy it again")
    sizes = row_bytes(columns)
    total = sum(piece["photos"] for piece in pieces)
    for name in (*sizes, PHOTOS) if pieces else ():
        path = folder / name
        with open(_existing(path), "rb") as file, tqdm(total=total, desc=f"Checking {name}", unit="photo", leave=False) as bar:
            for piece in pieces:
                data = file.read(piece["names"] if name == PHOTOS else piece["photos"] * sizes[name])
                if hashlib.sha256(data).hexdigest() != piece["sha256"].get(name):
                    raise InputError(f"{path} is damaged or cut off: photos {bar.n} to {bar.n + piece['photos'] - 1} have another checksum than "
                                     f"{JOURNAL} says. Make the index anew, or copy it again")
                bar.update(piece["photos"])


def pieces_of(count: int) -> Iterator[range]:
    """The numbers of `count` photos in pieces."""
    return (range(start, min(start + PIECE, count)) for start in range(0, count, PIECE))


def _check_header(header: dict) -> None:
    """Raises ValueError, TypeError, KeyError or AttributeError for a header that is none of ours."""
    model, settings, columns = header["model"], header["settings"], header["columns"]
    texts = (model["backbone"], model["aggregation"], model["sha256"], header["weights"], header["precision"])
    flags = (model["hashing"], model["rerank"], settings["antialias"])
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError("an entry of another type")
    height, width = settings["resize"]
    expected = {"utms", *(["codes"] if model["hashing"] else []), *(["descriptors"] if model["rerank"] or not model["hashing"] else [])}
    if set(columns) != expected or any(dtype not in ("<f8", "|u1", *DESCRIPTOR_DTYPES.values()) for dtype, _ in columns.values()):
        raise ValueError(f"columns {columns}")
    if not all(isinstance(number, int) and number > 0 for number in (height, width, *(width for _, width in columns.values()))):
        raise ValueError("a size that is none")


def _compare_headers(there: dict, asked: dict, parts: Sequence[str], message: str) -> None:
    flags = {"model": "the weights (--resume), --backbone, --aggregation, and which script", "settings": "--resize and --no_antialias",
             "precision": "--precision", "columns": "--descriptor_dtype"}
    for part in parts:
        if there[part] != asked[part]:
            left, right = (entry if isinstance(entry, dict) else {"": entry} for entry in (there[part], asked[part]))
            differences = [f"{key} {left.get(key)} (now {right.get(key)})" for key in {**left, **right} if left.get(key) != right.get(key)]
            raise InputError(f"{message}: {part} {', '.join(differences)}. Look at {flags[part]}")


def _make_index_folder(folder: Path, append: bool) -> None:
    if folder.is_file():
        raise InputError(f"{folder} is a file; an index is a folder")
    make_folder(folder, exist_ok=True)
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if HEADER in there and not append:
        raise InputError(f"{folder} holds an index: to add to it, or to go on with a broken-off one, give --append")
    if there and HEADER not in there:
        raise InputError(f"{folder} holds {', '.join(there[:5])} and no {HEADER}: it is no index, nor empty. Give a new folder")


def _lock(folder: Path) -> IO:
    """Held by this process alone: processes that it forks, and that may outlive it by seconds, do not hold it."""
    file = open(folder / ".lock", "w")  # noqa: SIM115 - open as long as the writer
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise InputError(f"another process writes to the index {folder}") from error
    return file


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _open_at(path: Path, size: int) -> IO:
    """The file, cut to a size and opened to write on from there, unbuffered."""
    file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the writer
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
