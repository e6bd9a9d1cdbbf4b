"""The index that a program has opened or saved: what its files hold of the rows in memory."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..saving import LOCK, new_folder
from .files import IndexFiles, JoinedPaths, JoinedRows
from .manifest import CHUNK_SIZE, Header, Manifest
from .metadata import IndexMetadata
from .projections import Projections
from .quantization import QuantizedArray, quantize
from .writing import Columns, RowWriter

if TYPE_CHECKING:
    from ..entries import Entries
    from ..rows import Rows, Snapshot


@dataclass(frozen=True, kw_only=True)
class Home:
    """The state of an index when it was last read or written.

    file_rows: for each of the first rows in memory, its row in the files, or -1 if it is not in them; removed: the rows
    in memory that were removed by then; state: the checksum of its manifest, to notice another program's changes;
    image_root: the folder of the images, where it is not the one that the index names.
    """

    folder: Path
    metadata: IndexMetadata
    header: Header
    state: str
    file_rows: np.ndarray
    removed: np.ndarray
    image_root: Path | None = None

    @staticmethod
    def open(folder: Path, *, verify: bool, image_root: Path | None = None) -> tuple["Home", IndexFiles]:
        """The state of an index now, and its files. Raises InputError if it is incomplete or damaged."""
        files = IndexFiles(folder, root=image_root)
        manifest = files.manifest
        if not manifest.is_marked:
            raise InputError(
                f"The index {folder} is incomplete: building it was interrupted, or is still in progress. Continue "
                "it with build_index.py --append."
            )
        if verify:
            for _ in files.verify():
                pass
        live = np.flatnonzero(~manifest.removed)
        home = Home(
            folder=Path(os.path.abspath(folder)),
            metadata=files.metadata,
            header=manifest.header,
            state=manifest.sha256,
            file_rows=live,
            removed=np.zeros(len(live), bool),
            image_root=image_root,
        )
        return home, files

    def load(self, files: IndexFiles) -> "tuple[Rows, Entries]":
        """What the files hold: ids and codes in memory, descriptors on the disk."""
        from ..entries import Entries
        from ..rows import Rows

        records, columns, live = files.records(), files.columns, self.file_rows
        next_id = max(self.header.next_id, int(records["id"][-1]) + 1 if len(records) else 0)
        is_whole = len(live) == len(records)
        records = records[live]
        codes = columns["codes"][:][live] if "codes" in columns else None
        stored: Any = columns.get("descriptors")
        if self.metadata.is_quantized:
            stored = QuantizedArray(columns["descriptors"], columns["scales"][:])
        if stored is not None and not is_whole:
            stored = JoinedRows([(stored, live)])
        names = files.paths if is_whole else JoinedPaths([(files.paths, live)])
        return Rows(records["id"].copy(), codes, stored, next_id), Entries(names, records)

    def is_at(self, folder: str | Path) -> bool:
        """Whether this is the index in a folder."""
        return os.path.realpath(folder) == os.path.realpath(self.folder)

    def has_changed(self) -> bool:
        """Whether another program has changed the index. Raises InputError if its manifest is damaged."""
        return Manifest.read(self.folder).sha256 != self.state

    @staticmethod
    def create(
        folder: Path,
        metadata: IndexMetadata,
        *,
        projections: Projections,
        snapshot: "Snapshot",
        entries: "Entries",
        next_id: int,
    ) -> "Home":
        """Writes all rows to a new folder: all of them or, if the process dies, none."""
        if os.path.lexists(folder):
            raise InputError(f"{folder} exists already, and is not the index that was opened. Choose a new folder.")
        live = np.flatnonzero(~snapshot.removed)
        with new_folder(folder) as temporary:
            header = Header(next_id=next_id)
            with RowWriter(temporary, metadata, append=False, header=header, projections=projections) as writer:
                _write(writer, snapshot, entries, live)
                writer.mark()
                state = Manifest.read(temporary).sha256
            (temporary / LOCK).unlink()
        file_rows = np.full(len(snapshot.removed), -1)
        file_rows[live] = np.arange(len(live))
        return Home(
            folder=Path(os.path.abspath(folder)),
            metadata=metadata,
            header=writer.header,
            state=state,
            file_rows=file_rows,
            removed=snapshot.removed.copy(),
        )

    def update(self, snapshot: "Snapshot", entries: "Entries", next_id: int) -> "Home":
        """Adds the rows that the files lack, and removes those that were removed since: all or nothing.

        Raises InputError if another program has changed the index meanwhile.
        """
        known = len(self.file_rows)
        new = known + np.flatnonzero(~snapshot.removed[known:])
        gone = self.file_rows[np.flatnonzero(snapshot.removed[:known] & ~self.removed)]
        is_there = IndexMetadata.read(self.folder) == self.metadata
        with RowWriter(self.folder, self.metadata, append=True, unmarked=False) as writer:
            if not is_there or writer.state != self.state:
                raise InputError(
                    f"Another program has changed the index {self.folder} since it was opened. Save to a new folder, "
                    "and make one of both with build_index.py --merge."
                )
            after_new = writer.next_id if not len(new) else int(snapshot.ids[new[-1]]) + 1
            if next_id > max(after_new, writer.next_id):  # the last images that were added were removed again
                writer.replace_header(next_id=next_id)
            start, removed = writer.rows, gone[gone >= 0].tolist()
            if len(new) or removed:
                writer.begin()
                _write(writer, snapshot, entries, new)
                writer.remove(removed)
                writer.mark()
            state = Manifest.read(self.folder).sha256  # before another program may change it
        file_rows = np.concatenate([self.file_rows, np.full(len(snapshot.removed) - known, -1)])
        file_rows[new] = start + np.arange(len(new))
        return replace(self, header=writer.header, state=state, file_rows=file_rows, removed=snapshot.removed.copy())


def _write(writer: RowWriter, snapshot: "Snapshot", entries: "Entries", rows: np.ndarray) -> None:
    """Appends rows in memory to an index."""
    from ..rows import codes_of

    for start in range(0, len(rows), CHUNK_SIZE):
        chunk = rows[start : start + CHUNK_SIZE]
        columns: Columns = {"images": entries.records(chunk.tolist())}
        columns["images"]["id"] = snapshot.ids[chunk]
        if snapshot.words is not None:
            columns["codes"] = codes_of(snapshot.words[:, chunk], writer.metadata.code_bits // 8)
        if snapshot.descriptors is not None:
            columns["descriptors"] = np.asarray(snapshot.descriptors[chunk], np.float32)
            if writer.metadata.is_quantized:
                columns["descriptors"], columns["scales"] = quantize(columns["descriptors"])
        writer.append(entries.names(chunk.tolist()), columns)
