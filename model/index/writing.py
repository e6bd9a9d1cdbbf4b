"""Writing an index: rows are added and removed, and become the new state with an end mark. Old rows can be left out."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import InputError
from ..files import open_regular, read_regular, remove_leftovers
from ..saving import lock_folder, new_file
from .files import PATHS, IndexFiles, check_lengths, data_file, problem_of
from .manifest import BEGIN, CHUNK_SIZE, MANIFEST, MAX_MANIFEST_BYTES, MAX_PATH_BYTES, Header, Manifest, line, removal
from .metadata import MAX_METADATA_BYTES, METADATA, IndexMetadata
from .projections import NO_PROJECTIONS, Projections

Columns = dict[str, np.ndarray]  # {name: rows}, as IndexMetadata.columns lists them


class RowWriter:
    """Adds rows to an index in a folder, and removes them. A context manager that locks out other writers.

    A new index gets this metadata, header and projections; with `append`, one that exists keeps its own. What is
    written becomes the state that readers see with `mark`; until then they see the one before. The process may be
    killed at any moment: the next writer continues after the last complete line or, without `unmarked`, at the last end
    mark.

    Attributes: folder; metadata; header; rows, the number of rows in the files; images, of these the ones that were
    not removed; is_marked, whether readers see what was written; state and chunks, the checksum of the manifest and
    its number of chunks at the start; files, what the folder held at the start, or None.
    Raises InputError if the folder is in use or cannot be written, if the index is damaged or, without `append`, if
    there is one.
    """

    def __init__(
        self,
        folder: Path,
        metadata: IndexMetadata,
        *,
        append: bool,
        header: Header | None = None,
        projections: Projections = NO_PROJECTIONS,
        unmarked: bool = True,
    ) -> None:
        self.folder = folder
        self._handles: dict[str, IO[bytes]] = {}
        self._lock = lock_folder(folder)
        try:
            remove_leftovers(folder)
            if not append or not (folder / METADATA).exists():
                _create(folder, metadata, projections)
            self.metadata = IndexMetadata.read(folder)
            self._metadata_sha256 = hashlib.sha256(read_regular(folder / METADATA, MAX_METADATA_BYTES)).hexdigest()
            self._open(header or Header(), unmarked=unmarked)
        except BaseException:
            self.close()
            raise

    def _open(self, new: Header, *, unmarked: bool) -> None:
        """Opens the files of the present generation, and removes what an unfinished change has left behind. new: the
        header of a manifest that is empty.
        """
        manifest = Manifest.read(self.folder, unmarked=unmarked)
        check_lengths(self.folder, self.metadata, manifest)  # before anything is cut off
        has_rows = bool(manifest.chunks) or manifest.is_marked
        self.files = IndexFiles(self.folder, unmarked=unmarked) if has_rows else None
        self.header = manifest.header if manifest.size else new
        self.state, self.chunks = manifest.sha256, len(manifest.chunks)
        self.rows, self.images, self._last_id = manifest.rows, manifest.images, -1
        self.is_marked, self._removed = manifest.is_marked, set(np.flatnonzero(manifest.removed).tolist())
        if self.files and self.rows:
            self._last_id = int(self.files.columns["images"][-1:]["id"][0])
        sizes = {f"{name}.bin": manifest.rows * size for name, size in self.metadata.row_bytes.items()}
        sizes |= {PATHS: manifest.path_bytes, MANIFEST: manifest.size}
        self._remove_other_generations()
        for name, size in sizes.items():
            path = self.folder / (name if name == MANIFEST else data_file(name, self.header.generation))
            self._handles[name] = file = _open_to_append(path)
            if os.fstat(file.fileno()).st_size > size:
                file.truncate(size)
                os.fsync(file.fileno())
        if not manifest.size:
            self._write(MANIFEST, self.header.to_line())

    @property
    def next_id(self) -> int:
        """The smallest id that no image has had."""
        return max(self.header.next_id, self._last_id + 1)

    def append(self, names: Sequence[str], columns: Columns, *, replaced: Iterable[int] = ()) -> None:
        """Adds up to CHUNK_SIZE images and removes others, the rows that they replace: all of it or, if the process
        dies, nothing.

        names: paths in the root are stored relative to it. The ids in columns["images"] must ascend.
        Raises InputError for a name with a line break, and if it cannot write.
        """
        ids = columns["images"]["id"]
        problem = problem_of(columns["images"])
        if problem:
            raise InputError(f"{self.folder}: {problem}. An index cannot store that.")
        assert len(names) == len(ids) <= CHUNK_SIZE and ids[0] > self._last_id and (np.diff(ids) > 0).all()
        content = self._content(names, columns)
        for name, data in content.items():
            self._write(name, data)
        replaced = list(replaced)
        # Last, because from here on the chunk belongs to the index.
        self._write(MANIFEST, line({**self._chunk(len(names), content), **self._removal(replaced)}))
        self.rows, self._last_id, self.is_marked = self.rows + len(names), int(ids[-1]), False
        self.images += len(names) - len(replaced)
        self._removed.update(replaced)

    def begin(self) -> None:
        """Makes what follows, until the next mark, one change: the next writer drops it if it is interrupted."""
        self._write(MANIFEST, line(BEGIN))
        self.is_marked = False

    def remove(self, rows: Iterable[int]) -> None:
        """Takes images out: their rows stay in the files until these are compacted. Raises InputError if it cannot
        write.
        """
        removed = list(rows)
        if removed:
            self._write(MANIFEST, line(self._removal(removed)))
            self.images -= len(removed)
            self.is_marked = False
            self._removed.update(removed)

    def mark(self) -> None:
        """Makes what was written the state that readers see."""
        if not self.is_marked:
            self._write(MANIFEST, line({"complete": self.images}))
            self.is_marked = True

    def rows_of(self, ids: Iterable[int]) -> list[int]:
        """The rows of those of these images, by their ids, that the index held when it was opened and still holds."""
        if self.files is None:
            return []
        wanted = np.isin(self.files.columns["images"][:]["id"], list(ids))
        return [row for row in np.flatnonzero(wanted).tolist() if row not in self._removed]

    def replace_header(self, **changes: Any) -> None:
        """Changes fields of the header."""
        header, data = replace(self.header, **changes), read_regular(self.folder / MANIFEST, MAX_MANIFEST_BYTES)
        if header != self.header:
            self._replace_manifest(header.to_line() + data.split(b"\n", 1)[1])

    def compact(self) -> Iterator[int]:
        """Writes the files anew without the rows that were removed. Yields how many images have been copied.

        Readers that have the index open keep what they see. Raises InputError, and leaves the index as it was, if it is
        damaged or the disk is full.
        """
        assert self.is_marked and self.files, "changes are complete"
        files = IndexFiles(self.folder)
        for _ in files.verify():  # otherwise damage would get new, right checksums
            pass
        live = np.flatnonzero(~files.manifest.removed)
        header = Header(generation=self.header.generation + 1, root=self.header.root, next_id=self.next_id)
        lines = [header.to_line()]
        written = {name: data_file(name, header.generation) for name in [*map("{}.bin".format, files.columns), PATHS]}
        try:
            with contextlib.ExitStack() as stack:
                handles = {name: stack.enter_context(_open_to_append(self.folder / to)) for name, to in written.items()}
                for start in range(0, len(live), CHUNK_SIZE):
                    rows = live[start : start + CHUNK_SIZE]
                    columns = {name: column[rows] for name, column in files.columns.items()}
                    content = self._content([files.paths.stored(row) for row in rows.tolist()], columns)
                    for name, data in content.items():
                        self._write_to(handles[name], data, sync=False)
                    lines.append(line(self._chunk(len(rows), content)))
                    yield start + len(rows)
                for file in handles.values():
                    os.fsync(file.fileno())
            lines.append(line({"complete": len(live)}))
            self._replace_manifest(b"".join(lines))
        except BaseException as error:
            self._remove_other_generations()
            if isinstance(error, OSError):
                raise InputError(
                    f"Cannot compact {self.folder}: {error.strerror or error}. It is unchanged."
                ) from error
            raise

    def _replace_manifest(self, data: bytes) -> None:
        """Replaces the manifest in one step, and opens the files that it names."""
        for handle in self._handles.values():  # Windows replaces no open file
            handle.close()
        try:
            with new_file(self.folder / MANIFEST, "wb") as file:
                file.write(data)
        finally:
            self._open(self.header, unmarked=True)

    def _remove_other_generations(self) -> None:
        """Removes files of a compaction that was interrupted, before or after its end."""
        stems = "|".join([*self.metadata.row_bytes, "paths"])
        pattern = re.compile(rf"({stems})(\.[0-9]+)?\.(bin|txt)")
        generation = Manifest.read(self.folder).header.generation
        for name in os.listdir(self.folder):
            found = pattern.fullmatch(name)
            if found and int((found[2] or ".0")[1:]) != generation:
                with contextlib.suppress(PermissionError):  # Windows: another process reads it
                    (self.folder / name).unlink(missing_ok=True)

    def _content(self, names: Sequence[str], columns: Columns) -> dict[str, bytes]:
        """{file: what it gets}."""
        for name in names:
            require_storable(name)
        content = {PATHS: os.fsencode("".join(f"{stored_name(name, self.header.root)}\n" for name in names))}
        for name, (dtype, shape) in self.metadata.columns.items():
            array = np.ascontiguousarray(columns[name], dtype)
            assert array.shape == (len(names), *shape), "one row per image"
            content[f"{name}.bin"] = array.tobytes()
        return content

    def _chunk(self, images: int, content: dict[str, bytes]) -> dict:
        checksums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        checksums[METADATA] = self._metadata_sha256
        return {"images": images, "path_bytes": len(content[PATHS]), "sha256": checksums}

    def _removal(self, rows: list[int]) -> dict:
        assert len({*rows}) == len(rows) and self._removed.isdisjoint(rows), "rows that are there"
        return {"removed": removal(rows)} if rows else {}

    def _write(self, name: str, data: bytes) -> None:
        try:
            self._write_to(self._handles[name], data)
        except OSError as error:
            raise InputError(
                f"Cannot write {self._handles[name].name}: {error.strerror or error}. The index is valid up to the "
                "last chunk; continue with --append once this is solved."
            ) from error

    @staticmethod
    def _write_to(file: IO[bytes], data: bytes, *, sync: bool = True) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        if sync:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Ends the lock."""
        for handle in self._handles.values():
            handle.close()
        self._lock.release()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def require_storable(name: str) -> None:
    """Raises InputError for a name that an index cannot store."""
    try:
        is_too_long = len(os.fsencode(name)) >= MAX_PATH_BYTES
    except UnicodeEncodeError:
        raise InputError(f"The name {name!r} cannot be encoded. Rename it.") from None
    if is_too_long or "\n" in name or "\0" in name:
        raise InputError(
            f"The name {name[:80]!r} contains a line break or a NUL byte, or has {MAX_PATH_BYTES} bytes or more, which "
            "an index cannot store. Rename it."
        )


def stored_name(name: str, root: str) -> str:
    """A name as paths.txt has it: "./" and the path in the root, or as it is."""
    return f"./{name[len(root) :].lstrip(os.sep)}" if root and name.startswith(root.rstrip(os.sep) + os.sep) else name


def _create(folder: Path, metadata: IndexMetadata, projections: Projections) -> None:
    """Makes a folder an index without images."""
    for name, data in projections.files.items():  # before the metadata, which makes the folder an index
        with new_file(folder / name, "wb") as file:
            file.write(data)
    with new_file(folder / METADATA, new=True) as file:  # so even without a lock only one process begins
        file.write(metadata.to_json(indent=2))


def _open_to_append(path: Path) -> IO[bytes]:
    """The file, unbuffered. Raises InputError for a link: what it leads to is not the index's."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    return open(path, "ab", buffering=0, opener=lambda name, _: open_regular(name, flags))
