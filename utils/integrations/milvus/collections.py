"""The collections of an index in Milvus.

NAME:             id (row of the index), code, path and POSITION_FIELDS; exact Hamming search (BIN_FLAT)
NAME_descriptors: id, descriptor (float32); if the model has a float branch

The description of NAME is the index's metadata.json. Its property STATE_PROPERTY says which rows of which index it
holds, and whether all have arrived.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from datasets.zones import MAX_ZONE
from model import CODE_BITS
from model.errors import InputError
from model.index.metadata import METADATA_ERRORS, IndexMetadata, UnknownFormat
from utils.retrieval.config import EngineAddress

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
    """What a collection holds, or will hold: the first `images` images of an index, which `sha256` identifies.

    complete: whether all have arrived. pending_sha256: what identifies the larger part of the index that is being
    copied, beyond these images; None if none is. Raises ValueError for other values.
    """

    images: int
    sha256: str
    complete: bool
    pending_sha256: str | None = None

    def __post_init__(self) -> None:
        texts = [self.sha256] + ([] if self.pending_sha256 is None else [self.pending_sha256])
        if type(self.images) is not int or self.images < 1 or type(self.complete) is not bool:
            raise ValueError(f"{self.images} images, complete: {self.complete}")
        if not all(type(text) is str for text in texts):
            raise ValueError("a checksum that is not a text")


class Collections:
    """The collections of an address. Attributes: codes and descriptors, their names; metadata; state."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.address = connection, connection.address
        self.codes = self.address.name
        self.descriptors = f"{self.address.name}_descriptors"
        self.exists = connection.call("has_collection", self.codes)
        if self.exists:
            found = connection.call("describe_collection", self.codes)
            try:
                self.shards = found["num_shards"]
                self.metadata = IndexMetadata.parse(found["description"].encode())
                self.state = State(**json.loads(found["properties"][STATE_PROPERTY]))
            except UnknownFormat as error:
                raise InputError(f"The index {self.address} has {error}. Export it again under another name.") from None
            except (*METADATA_ERRORS, AttributeError) as error:
                raise InputError(
                    f"The collection {self.codes} at {self.address.host}:{self.address.port} was not written by "
                    "export.py milvus. Choose another name."
                ) from error

    @property
    def names(self) -> list[str]:
        """Those that the index has."""
        return [self.codes, *([self.descriptors] if self.metadata.descriptor_dim else [])]

    def create(self, metadata: IndexMetadata, state: State, shards: int) -> None:
        """Creates the collections that do not exist. That of the codes comes first, because it has the state."""
        from pymilvus import DataType

        if not self.exists:
            self.metadata, self.shards = metadata, shards
            if self.connection.call("has_collection", self.descriptors):
                raise InputError(
                    f"A collection {self.descriptors} exists already at {self.address.host}:{self.address.port}, "
                    f"without {self.codes}. Drop it, or choose another name."
                )
            schema = self.connection.schema(metadata.to_json())
            schema.add_field("code", DataType.BINARY_VECTOR, dim=CODE_BITS)
            schema.add_field("path", DataType.VARCHAR, max_length=MAX_PATH_BYTES)
            for name in POSITION_FIELDS:
                schema.add_field(name, DataType.INT8 if name == "zone" else DataType.DOUBLE)
            self._create(self.codes, schema, state, index=("code", "BIN_FLAT", "HAMMING"))
            self.exists = True
        if metadata.descriptor_dim and not self.connection.call("has_collection", self.descriptors):
            schema = self.connection.schema(f"Descriptors of {self.codes}")
            schema.add_field("descriptor", DataType.FLOAT_VECTOR, dim=metadata.descriptor_dim)
            self._create(self.descriptors, schema, None, index=("descriptor", "FLAT", "L2"))

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

    def load(self) -> None:
        """Has the servers load the collections, which searching and counting need, and waits for it."""
        for name in self.names:
            self.connection.call("load_collection", name, timeout=LOAD_SECONDS)

    def malformed(self, problem: str) -> InputError:
        """The error for an answer that no server gives about this index."""
        return InputError(
            f"The Milvus server at {self.address.host}:{self.address.port} answers what cannot be right: {problem}. "
            f"Has {self.address} been changed? Drop its collections and export the index again."
        )

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

    def rows(self, name: str, ids: Sequence[int] | range, fields: list[str]) -> dict[int, dict[str, Any]]:
        """{id: fields} of at most MAX_ROWS rows. Raises InputError if one is missing, or a field is not what it is."""
        condition = f"id >= {ids.start} and id < {ids.stop}" if isinstance(ids, range) else f"id in {list(ids)}"
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
        if len(found) != len(wanted):
            raise InputError(
                f"The collection {name} of {self.address} holds {len(found)} of {len(wanted)} rows that were asked "
                "for. Has it been changed? Drop it and export the index again."
            )
        return found

    def _checked(self, field: str, value: Any, number: int) -> Any:
        """The value of a field: a code as bytes, a descriptor as float32. Raises InputError for what is neither."""
        checked: Any = None
        try:
            if field == "code":
                checked = value if isinstance(value, bytes) else b"".join(value)
                is_right = len(checked) == CODE_BITS // 8
            elif field == "descriptor":
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


def split_rows(rows: range, dim: int) -> Iterable[range]:
    """Consecutive ranges of rows whose descriptors fit into a message."""
    size = min(MAX_ROWS, max(1, MAX_MESSAGE_BYTES // (4 * dim)))
    return (rows[start : start + size] for start in range(0, len(rows), size))
