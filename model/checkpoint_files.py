"""Reading checkpoint files, those of torch.save and of safetensors, safely."""

import json
import logging
import re
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from .errors import InputError
from .files import open_regular
from .versions import check_torch_version

ZIP_MAGIC = b"PK\x03\x04"  # by which torch.load tells the ZIP format from the legacy one
ZIP_FOLDER = 0x10  # of records whose content torch.load takes as empty, giving uninitialised tensors
READ_BLOCK = 1 << 20  # bytes
PICKLE_PROTOCOL = 2  # of torch.save, and the only one that weights_only=True reads
MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, by the format's definition


class _NumPyPlaceholder:
    """Placeholder for the NumPy objects in published checkpoints (saved recalls), which are not used here.

    With it, loading runs no NumPy code on the file's content, and neither NumPy 1 nor 2 needs to be installed.
    """

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


_NUMPY_NAMES = ["numpy.dtype", "numpy.ndarray"] + [
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")
]


def read_checkpoint(path: str | Path) -> dict:
    """The dict in a checkpoint file, with tensors on the CPU. Code in the file is never run.

    A safetensors file gives the same dict as a checkpoint of ours. The checksums of the file are verified; the legacy
    format of torch.save and safetensors files have none. Raises InputError if the file is missing, is not a
    checkpoint, is truncated or damaged, or contains pickled code; if it is a safetensors file, but that package is not
    installed; and if PyTorch is too old to be safe.
    """
    check_torch_version()
    path = Path(path)
    if not path.is_file():
        reason = "this is a folder" if path.is_dir() else "not a file" if path.exists() else "the file does not exist"
        raise InputError(f"No checkpoint at {path}: {reason}.")
    try:
        file = open(open_regular(path), "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    with file:  # opened once, so that the file that was verified is the one that is loaded
        head = file.read(64)
        file.seek(0)
        if not head:
            raise InputError(f"{path} is not a checkpoint, or is truncated: the file is empty.")
        if _is_safetensors(head):
            return _load_safetensors(file.read(), path)
        if head.startswith(ZIP_MAGIC):
            _verify_archive(file, path)
            file.seek(0)
        checkpoint = _load(file, path)
    if not isinstance(checkpoint, dict):
        raise InputError(
            f"{path} contains a {type(checkpoint).__name__}. Expected a dict of tensors, or one under "
            "'model_state_dict'."
        )
    return checkpoint


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors files do: with the length of a JSON object, and its start."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_SAFETENSORS_HEADER


def _load_safetensors(data: bytes, path: Path) -> dict:
    try:
        import safetensors.torch
    except ImportError as error:
        raise InputError(
            f"Reading the safetensors file {path} needs the package safetensors: pip install -r "
            "requirements-safetensors.txt"
        ) from error
    try:
        state = safetensors.torch.load(data)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file may raise
        raise InputError(f"{path} is not a safetensors file, or is truncated or damaged: {error}.") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = {"model_state_dict": state}
    for name, text in header.get("__metadata__", {}).items():
        if name in ("model_config", "image_config"):
            try:
                content[name] = json.loads(text)
            except (ValueError, RecursionError) as error:  # the latter for JSON that is nested too deeply
                raise InputError(f"{path}: the metadata {name} is not JSON: {text[:100]!r}.") from error
    return content


def _verify_archive(file: BinaryIO, path: Path) -> None:
    """Verifies the checksums of all records of a checkpoint in the ZIP format, which torch.load ignores.

    A file that was written without checksums is accepted with a warning. Raises InputError if a checksum differs, or
    if the archive is not a checkpoint.
    """
    try:
        archive = zipfile.ZipFile(file)
    except MemoryError:
        raise
    except Exception as error:  # a damaged directory can fail anywhere
        raise _not_a_checkpoint(file, path) from error
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path} is a TorchScript archive; expected a state dict, as torch.save(model.state_dict(), ...) writes it."
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise InputError(
            f"{path} is a ZIP archive but not a checkpoint: it contains {', '.join(names[:5])}. Expected a file of "
            "torch.save."
        )
    # A record that is not empty, as data.pkl, has the checksum 0 only where torch.save was told to write none.
    if all(record.CRC == 0 for record in archive.infolist()):
        logging.warning("%s was saved without checksums (set_crc32_options), so damage cannot be detected.", path)
        return
    for record in archive.infolist():
        try:
            if record.external_attr & ZIP_FOLDER:
                raise zipfile.BadZipFile("it is marked as a folder")
            if record.compress_type != zipfile.ZIP_STORED:  # never by torch.save; a few MB could fill the memory
                raise zipfile.BadZipFile("it is compressed")
            with archive.open(record) as content:
                while content.read(READ_BLOCK):  # raises BadZipFile where the checksum differs
                    pass
        except MemoryError:
            raise
        except Exception as error:  # a damaged record can fail anywhere
            raise InputError(
                f"{path} is damaged: its record {record.filename} cannot be verified ({error}). Copy or "
                "download the file again."
            ) from error


def _load(file: BinaryIO, path: Path) -> object:
    try:
        with (
            torch.serialization.safe_globals([(_NumPyPlaceholder, name) for name in _NUMPY_NAMES]),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # an error says so, if it is one
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise InputError(
                f"{path} contains pickled code ({code[1]}) and was not loaded. A checkpoint may hold only tensors "
                "and plain values."
            ) from error
        protocol = _pickle_protocol(file)
        if protocol > PICKLE_PROTOCOL:
            raise InputError(
                f"{path} was saved with pickle protocol {protocol}, which torch.load cannot read safely. Load it "
                f"where it was made, and save it again with torch.save's default protocol, {PICKLE_PROTOCOL}."
            ) from error
        raise _not_a_checkpoint(file, path) from error


def _pickle_protocol(file: BinaryIO) -> int:
    """The protocol that a checkpoint states: in its record data.pkl or, in the legacy format, at its start."""
    file.seek(0)
    head = file.read(4)
    if head == ZIP_MAGIC:
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as record:
                head = record.read(2)
    return head[1] if head[:1] == b"\x80" and len(head) > 1 else 0


def _not_a_checkpoint(file: BinaryIO, path: Path) -> InputError:
    """The error for a file that cannot be read, with its first words if it is a text."""
    file.seek(0)
    start = file.read(40).decode("latin-1")
    is_text = start.isascii() and "".join(start.split()).isprintable()
    text = f", beginning with {start!r}" if start and is_text else ""
    return InputError(
        f"{path} is not a checkpoint, or is truncated: torch.load cannot read it ({path.stat().st_size} bytes{text})."
    )
