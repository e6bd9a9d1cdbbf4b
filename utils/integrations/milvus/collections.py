"""The collections of an index in Milvus.

NAME:             id (that of the index), code, path and POSITION_FIELDS; exact Hamming search (BIN_FLAT)
NAME_descriptors: id, descriptor (float32); if the index has descriptors
NAME_coding:      id, row (float32), the rows of the Coding; if codes were made of the descriptors

The description of NAME is the index's metadata.json. Its property STATE_PROPERTY says which rows belong to the copy.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from model.errors import InputError
from model.index.coding import Coding
from model.index.metadata import MAX_ZONE, METADATA_ERRORS, IndexMetadata, UnknownFormat
from utils.retrieval.config import EngineAddress
from utils.retrieval.search import with_progress

POSITION_FIELDS = ("easting", "northing", "zone", "latitude", "longitude")  # NaN, or the zone 0, where unknown
STATE_PROPERTY = "selavprplusplus.state"
CONNECT_SECONDS, REQUEST_SECONDS, LOAD_SECONDS = 5, 120, 3600
MAX_ROWS = 16_384  # that Milvus returns for a query
MAX_MESSAGE_BYTES = 32 << 20  # of vectors: Milvus allows 64 MiB for a message
MAX_PATH_BYTES = 65_535  # of a VARCHAR


class Connection:
    """A client of the server at an address. `call` raises InputError where the server refuses or does not answer."""

    def __init__(self, address: EngineAddress) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read on import; else a failed TLS handshake is printed
        try:
            from grpc import RpcError
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException
        except ImportError:
            raise InputError(
                f"{address} needs the package pymilvus. Install it with: pip install -r requirements-milvus.txt"
            ) from None
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)  # prints a traceback for each error
        self.address = address
        self._errors = MilvusException, RpcError
        options: dict[str, Any] = {"server_pem_path": str(address.tls_ca)} if address.tls_ca else {}
        # A connection of its own: pymilvus would share one that another client opened with another certificate.
        options["dedicated"] = True
        uri = f"{'https' if address.tls else 'http'}://{address.host}:{address.port}"
        try:
            self._client = MilvusClient(uri, token=address.token, timeout=CONNECT_SECONDS, **options)
        except self._errors as error:
            raise self._explain(error) from error

    def call(self, method: str, *args: Any, timeout: float = REQUEST_SECONDS, **options: Any) -> Any:
        """What this method of MilvusClient returns."""
        try:
            return getattr(self._client, method)(*args, timeout=timeout, **options)
        except self._errors as error:
            raise self._explain(error) from error

    def schema(self, description: str) -> Any:
        """The fields of a new collection: so far `id`."""
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
        return schema.add_field("id", DataType.INT64, is_primary=True)

    def _explain(self, error: Exception) -> InputError:
        server = f"{self.address.host}:{self.address.port}"
        text = " ".join(f"{error} {error.__cause__ or ''}".split())  # the cause of a failed connection is its cause
        if "UNAUTHENTICATED" in text:
            return InputError(f"The Milvus server at {server} refuses the token. Set MILVUS_TOKEN to USER:PASSWORD.")
        if "UNAVAILABLE" in text or "server unavailable" in text:
            return InputError(f"No Milvus server answers at {server}. Start it, or check the address and TLS.")
        return InputError(f"The Milvus server at {server} reports an error: {text[:300]}")


@dataclass(frozen=True, kw_only=True)
class State:
    """Which rows belong to the copy: those with an id below `end` that are not `removed`.

    images: how many these are; 0 before the first export has come to its end. removed: ids of rows that are being
    deleted, in order. pending: whether there may be rows of an unfinished export, all of them at or beyond `end`.
    Raises ValueError for other values.
    """

    images: int
    end: int
    removed: list[int] = field(default_factory=list)
    pending: bool = False

    def __post_init__(self) -> None:
        numbers = [self.images, self.end, *self.removed]
        if any(type(number) is not int or number < 0 for number in numbers) or type(self.pending) is not bool:
            raise ValueError(f"{self.images} images below {self.end}, pending: {self.pending}")
        if self.images > self.end or self.removed != sorted(set(self.removed)):
            raise ValueError(f"{self.images} images below {self.end}, or removed ids that do not ascend")

    @staticmethod
    def of(ids: np.ndarray, removed: np.ndarray) -> "State":
        """The state of a copy that holds these ids, one or more in ascending order, while others are deleted."""
        return State(images=len(ids), end=int(ids[-1]) + 1, removed=removed.tolist())

    @property
    def has_gaps(self) -> bool:
        """Whether ids are missing between 0 and the last one."""
        return self.images != self.end

    @property
    def searchable(self) -> str:
        """The condition that leaves out other rows; "" where there are none, as a condition costs time."""
        parts = [f"id < {self.end}"] if self.pending else []
        return " and ".join(parts + ([f"id not in {self.removed}"] if self.removed else []))


class Collections:
    """The collections of an address. Attributes: codes, descriptors and coding, their names; metadata; state."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.address = connection, connection.address
        self.codes = self.address.name
        self.descriptors = f"{self.address.name}_descriptors"
        self.coding = f"{self.address.name}_coding"
        self.exists = connection.call("has_collection", self.codes)
        if self.exists:
            found = connection.call("describe_collection", self.codes)
            try:
                self.shards = found["num_shards"]
                self.metadata = IndexMetadata.parse(found["description"].encode())
                self.state = _state_of(found)
            except UnknownFormat as error:
                raise InputError(f"The index {self.address} has {error}. Export it again under another name.") from None
            except (*METADATA_ERRORS, AttributeError) as error:
                raise InputError(
                    f"The collection {self.codes} at {self.address.host}:{self.address.port} was not written by "
                    "export.py milvus. Choose another name."
                ) from error

    @property
    def names(self) -> list[str]:
        """Those that the index has with a row for each image."""
        return [self.codes, *([self.descriptors] if self.metadata.descriptor_dim else [])]

    def create(self, metadata: IndexMetadata, state: State, shards: int) -> None:
        """Creates the collections that do not exist. That of the codes comes first, because it has the state."""
        from pymilvus import DataType

        if not self.exists:
            self.metadata, self.shards = metadata, shards
            for name in (self.descriptors, self.coding):
                if self.connection.call("has_collection", name):
                    raise InputError(
                        f"A collection {name} exists already at {self.address.host}:{self.address.port}, without "
                        f"{self.codes}. Drop it, or choose another name."
                    )
            schema = self.connection.schema(metadata.to_json())
            schema.add_field("code", DataType.BINARY_VECTOR, dim=metadata.code_bits)
            schema.add_field("path", DataType.VARCHAR, max_length=MAX_PATH_BYTES)
            for name in POSITION_FIELDS:
                schema.add_field(name, DataType.INT8 if name == "zone" else DataType.DOUBLE)
            self._create(self.codes, schema, state, index=("code", "BIN_FLAT", "HAMMING"))
            self.exists, self.state = True, state
        if metadata.descriptor_dim and not self.connection.call("has_collection", self.descriptors):
            schema = self.connection.schema(f"Descriptors of {self.codes}")
            schema.add_field("descriptor", DataType.FLOAT_VECTOR, dim=metadata.descriptor_dim)
            self._create(self.descriptors, schema, None, index=("descriptor", "FLAT", "L2"))
        if metadata.has_coding and not self.connection.call("has_collection", self.coding):
            schema = self.connection.schema(f"Coding of {self.codes}")
            schema.add_field("row", DataType.FLOAT_VECTOR, dim=metadata.descriptor_dim)
            self._create(self.coding, schema, None, index=("row", "FLAT", "L2"))

    def _create(self, name: str, schema: Any, state: State | None, *, index: tuple[str, str, str]) -> None:
        from pymilvus import MilvusClient

        params = MilvusClient.prepare_index_params()
        params.add_index(index[0], index_type=index[1], metric_type=index[2])
        properties = {STATE_PROPERTY: json.dumps(asdict(state))} if state else {"mmap.enabled": "true"}
        options = {"schema": schema, "index_params": params, "num_shards": self.shards, "properties": properties}
        self.connection.call("create_collection", name, **options)

    def set_state(self, state: State) -> None:
        """Stores the state."""
        properties = {STATE_PROPERTY: json.dumps(asdict(state))}
        self.connection.call("alter_collection_properties", self.codes, properties=properties)
        self.state = state

    def has_changed(self) -> bool:
        """Whether an export has changed the state since it was read, or there is none any more."""
        if not self.connection.call("has_collection", self.codes, timeout=CONNECT_SECONDS):
            return True
        try:
            found = self.connection.call("describe_collection", self.codes, timeout=CONNECT_SECONDS)
            return _state_of(found) != self.state
        except (*METADATA_ERRORS, AttributeError):
            return True

    def load(self) -> None:
        """Has the servers load the collections, which searching and counting need, and waits for it."""
        for name in [*self.names, *([self.coding] if self.metadata.has_coding else [])]:
            self.connection.call("load_collection", name, timeout=LOAD_SECONDS)

    def malformed(self, problem: str) -> InputError:
        """The error for an answer that no server gives about this index."""
        return self.error(
            f"The Milvus server at {self.address.host}:{self.address.port} answers what cannot be right: {problem}. "
            f"Has {self.address} been changed? Drop its collections and export the index again."
        )

    def error(self, message: str) -> InputError:
        """The error for rows that are not those of the state; another one if an export has changed it meanwhile."""
        if self.has_changed():
            message = f"The index {self.address} has been changed since it was opened. Open it again."
        return InputError(message)

    def count(self, name: str) -> int:
        """The rows of a collection, all acknowledged ones included. This takes 0.2 s or more."""
        options: dict[str, Any] = {"filter": "", "output_fields": ["count(*)"], "consistency_level": "Strong"}
        answer = self.connection.call("query", name, **options)
        try:
            count = answer[0]["count(*)"]
        except (LookupError, TypeError):
            count = None
        if type(count) is not int or count < 0:
            raise self.malformed(f"{name} holds {count!r} rows")
        return count

    def ids(self) -> np.ndarray:
        """The ids of the copy's images, int64 in ascending order. Where there are gaps, all of them are read.

        Raises InputError if rows are missing, or there are too many.
        """
        if not self.state.has_gaps:
            return np.arange(self.state.images)
        found = np.setdiff1d(self.stored_ids(self.codes, range(self.state.end)), self.state.removed)
        if len(found) != self.state.images:
            raise self.malformed(f"{self.codes} holds {len(found)} rows instead of {self.state.images}")
        return found

    def stored_ids(self, name: str, among: range) -> np.ndarray:
        """The ids of a collection in a range, int64 in ascending order."""
        pages = [np.empty(0, np.int64)]
        for start in with_progress(range(among.start, among.stop, MAX_ROWS), "Reading ids"):
            page = range(start, min(start + MAX_ROWS, among.stop))  # the order of a query's rows is not promised
            pages.append(np.array(sorted(self._query(name, page, [])), np.int64))
        return np.concatenate(pages)

    def rows(self, name: str, ids: Sequence[int] | range, fields: list[str]) -> dict[int, dict[str, Any]]:
        """{id: fields} of at most MAX_ROWS rows. Raises InputError if one is missing, or a field is not what it is."""
        found = self._query(name, ids, fields)
        if len(found) != len(ids):
            raise self.malformed(f"{name} holds {len(found)} of {len(ids)} rows that were asked for")
        return found

    def _query(self, name: str, ids: Sequence[int] | range, fields: list[str]) -> dict[int, dict[str, Any]]:
        """{id: fields} of those rows that are there, of MAX_ROWS different ids at most."""
        first, last = min(ids), max(ids)
        condition = f"id >= {first} and id <= {last}" if len(ids) == last - first + 1 else f"id in {list(ids)}"
        options: dict[str, Any] = {
            "output_fields": ["id", *fields],
            "consistency_level": "Eventually",
            "limit": MAX_ROWS,
        }
        wanted, found = set(ids), dict[int, dict[str, Any]]()
        for row in self.connection.call("query", name, filter=condition, **options):
            if not isinstance(row, Mapping) or not {"id", *fields} <= row.keys():
                raise self.malformed(f"a row of {name} without its fields")
            number = row["id"]
            if type(number) is not int or number not in wanted or number in found:
                raise self.malformed(f"a row of {name} with the id {number!r}, unasked or twice")
            found[number] = {field: self._checked(field, row[field], number) for field in fields}
        return found

    def read_descriptors(self, ids: np.ndarray) -> np.ndarray:
        """The descriptors of these ids, [n, dim] float32. Ids may repeat."""
        rows = np.empty((len(ids), self.metadata.descriptor_dim), np.float32)
        for part in split_rows(len(ids), self.metadata.descriptor_dim):
            found = self.rows(self.descriptors, np.unique(ids[part]).tolist(), ["descriptor"])
            rows[part] = [found[i]["descriptor"] for i in ids[part].tolist()]
        return rows

    def write_coding(self, coding: Coding) -> None:
        """Stores what makes codes of descriptors. It may be there already, or a part of it."""
        for part in split_rows(len(coding.rows), coding.dim):
            rows = zip(range(part.start, part.stop), coding.rows[part], strict=True)
            self.connection.call("upsert", self.coding, [{"id": i, "row": row} for i, row in rows])
        self.connection.call("flush", self.coding, timeout=LOAD_SECONDS)

    def read_coding(self) -> Coding | None:
        """What makes codes of descriptors; None if the model makes them. Raises InputError if it is not that of the
        metadata.
        """
        method = self.metadata.coding_method
        if method is None:
            return None
        rows = np.empty((1 + self.metadata.code_bits, self.metadata.descriptor_dim), np.float32)
        for part in split_rows(*rows.shape):
            found = self.rows(self.coding, range(part.start, part.stop), ["row"])
            rows[part] = [found[i]["row"] for i in range(part.start, part.stop)]
        if hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest() != self.metadata.coding_sha256:
            raise self.malformed(f"{self.coding} holds another coding")
        return Coding.from_rows(method, rows)

    def delete(self, name: str, ids: np.ndarray) -> None:
        """Deletes rows, which need not be there."""
        for start in range(0, len(ids), MAX_ROWS):
            self.connection.call("delete", name, ids=ids[start : start + MAX_ROWS].tolist())

    def _checked(self, field: str, value: Any, number: int) -> Any:
        """The value of a field: a code as bytes, a descriptor as float32. Raises InputError for what is neither."""
        checked: Any = None
        try:
            if field == "code":
                checked = value if isinstance(value, bytes) else b"".join(value)
                is_right = len(checked) == self.metadata.code_bits // 8
            elif field in ("descriptor", "row"):
                checked = np.asarray(value, np.float32)
                is_right = checked.shape == (self.metadata.descriptor_dim,) and bool(np.isfinite(checked).all())
            elif field == "path":
                checked = value
                is_right = isinstance(value, str) and value != "" and not {"\0", "\n"} & set(value)
            elif field == "zone":
                checked = value
                is_right = type(value) is int and abs(value) <= MAX_ZONE
            else:  # NaN: an unknown position
                checked = value
                is_right = isinstance(value, float) and not math.isinf(value)
        except (TypeError, ValueError, OverflowError):
            is_right = False
        if not is_right:
            raise self.malformed(f"the {field} of image {number} is {str(value)[:60]}")
        return checked


def _state_of(description: Mapping[str, Any]) -> State:
    """The state of a collection that is described. Raises one of METADATA_ERRORS if it has none."""
    return State(**json.loads(description["properties"][STATE_PROPERTY]))


def split_rows(count: int, dim: int) -> Iterable[slice]:
    """Consecutive slices of rows whose descriptors fit into a message."""
    size = min(MAX_ROWS, max(1, MAX_MESSAGE_BYTES // (4 * dim)))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
