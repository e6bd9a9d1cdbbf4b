"""What a Milvus server answers is checked like a file; here the server is a table in memory that can be told to lie."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers.milvus import LivingIndex, assert_same_results, is_copy, write
from helpers.models import build

from datasets.ground import Ground
from datasets.image_set import ImageSet
from model import InputError
from model.geodesy import degrees_of_local
from model.index.coding import Coding
from model.index.projections import Projections
from utils.integrations.milvus import export_index, open_index, reader, writer
from utils.retrieval.config import EngineAddress, ExtractionConfig, IndexConfig
from utils.retrieval.extraction import project
from utils.retrieval.features import Features
from utils.retrieval.index import Index, IndexWriter, metadata_of

pytest.importorskip("pymilvus")

ADDRESS = EngineAddress.parse("milvus://127.0.0.1:9/copy")
ROWS = 2500
CHANGES = {"create_collection", "alter_collection_properties", "upsert", "delete", "flush"}


class Table:
    """Collections in memory, with as much of MilvusClient as is called. `lie`: {method: what its answer becomes};
    `calls`: the names of methods; `fail_after`: the number of upserts, and `changes_left`: that of changes, after which
    the server is gone.
    """

    def __init__(self):
        self.found, self.rows, self.lie, self.calls = {}, {}, {}, []
        self.fail_after = self.changes_left = 10**9

    def connect(self, address):
        self.address = address
        return self

    def schema(self, description):
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
        return schema.add_field("id", DataType.INT64, is_primary=True)

    def call(self, method, *args, timeout=0, **options):
        self.calls.append(method)
        self.changes_left -= method in CHANGES
        if self.changes_left < 0:
            raise InputError("the server is gone")
        answer = getattr(self, method)(*args, **options)
        return self.lie[method](answer) if method in self.lie else answer

    def has_collection(self, name):
        return name in self.found

    def describe_collection(self, name):
        return self.found[name]

    def create_collection(self, name, schema, index_params, num_shards, properties):
        self.found[name] = {"num_shards": num_shards, "description": schema.description, "properties": properties}
        self.rows[name] = {}

    def alter_collection_properties(self, name, properties):
        self.found[name]["properties"] = properties

    def load_collection(self, name):
        pass

    flush = load_collection

    def upsert(self, name, content):
        self.fail_after -= 1
        if self.fail_after < 0:
            raise InputError("the server is gone")
        self.rows[name] |= {row["id"]: row for row in content}

    def delete(self, name, filter="", ids=None):
        for i in self.ids(name, filter) if ids is None else ids:
            self.rows[name].pop(i, None)

    def ids(self, name, condition):
        matches = compile(condition or "True", "filter", "eval")
        return [i for i in self.rows[name] if eval(matches, {"id": i})]

    def query(self, name, filter, output_fields, consistency_level, limit=0):
        if output_fields == ["count(*)"]:
            return [{"count(*)": len(self.rows[name])}]
        found = [self.rows[name][i] for i in self.ids(name, filter)]
        return [{field: self.stored(row[field]) for field in output_fields} for row in found]

    def stored(self, value):
        return [value] if isinstance(value, bytes) else value.tolist() if isinstance(value, np.ndarray) else value

    def search(self, name, data, limit, filter, consistency_level):
        ids = np.array(self.ids(name, filter))
        codes = np.array([np.frombuffer(self.rows[name][i]["code"], np.uint8) for i in ids])
        answer = []
        for query in data:
            distances = np.unpackbits(codes ^ np.frombuffer(query, np.uint8), axis=1).sum(axis=1)
            nearest = np.argsort(distances, kind="stable")[:limit]
            answer.append([{"id": int(ids[i]), "distance": float(distances[i])} for i in nearest])
        return answer


@pytest.fixture(scope="module")
def metadata():
    return metadata_of(build("vit-tiny", hashing=True, rerank=True), ExtractionConfig(resize=(56, 56)))


@pytest.fixture(scope="module")
def index(tmp_path_factory, metadata):
    return write(tmp_path_factory.mktemp("index") / "index", metadata, ROWS)


@pytest.fixture
def table(monkeypatch):
    table = Table()
    for module in (reader, writer):
        monkeypatch.setattr(module, "Connection", table.connect)
    return table


def use(index):
    """Everything that a search reads: hits, descriptors, paths, positions."""
    copy = open_index(ADDRESS)
    features, codes = copy.features(), index.features().codes[:2]
    found = features.codes.search(codes, 5).indices
    return features.descriptors[found[0]], [copy.images.paths[i] for i in found[0]], np.asarray(copy.images.utms)


def is_searchable():
    try:
        open_index(ADDRESS)
    except InputError as error:
        assert "is incomplete" in str(error) or "No index" in str(error)
        return False
    return True


def in_first(change):
    """An answer whose first row, or hit of the first query, is changed."""

    def lie(answer):
        rows = answer[0] if isinstance(answer[0], list) else answer
        rows[0] = change(rows[0]) if isinstance(rows[0], dict) and "count(*)" not in rows[0] else rows[0]
        return answer

    return lie


def set_field(name, value):
    return in_first(lambda row: {**row, name: value} if name in row else row)


def test_the_table_in_memory_answers_as_the_folder_does(index, table):
    assert export_index(index, ADDRESS) == (ROWS, 0)
    assert_same_results(index, open_index(ADDRESS), 100)


@pytest.mark.parametrize("form", ["degrees", "metres in two zones"])
def test_distances_to_the_images_of_a_copy_are_those_of_the_folder(tmp_path, metadata, table, form):
    random = np.random.default_rng(0)
    paths, metres = [f"/{i}.jpg" for i in range(30)], random.uniform(0, 100, (30, 2))
    if form == "degrees":
        images = ImageSet.at_degrees(paths, degrees_of_local(metres, (-16.8, 180)))
    else:
        images = ImageSet.at_utms(paths, metres + (500_000, 6_000_000), random.choice([32, -33], 30).astype(np.int8))
    codes, descriptors = (
        random.integers(0, 256, (30, 64), np.uint8),
        np.zeros((30, metadata.descriptor_dim), np.float32),
    )
    with IndexWriter(IndexConfig(folder=tmp_path / "index"), metadata) as index_writer:
        index_writer.append(Features(images, codes, descriptors))
        index_writer.features()
    export_index(Index(tmp_path / "index"), ADDRESS)
    ours, theirs = Ground(images, images[:9]), Ground(open_index(ADDRESS).images, images[:9])
    theirs.require_positions()
    assert ours.is_flat is theirs.is_flat is (form != "degrees")
    expected, found = (list(map(list, ground.positives(25))) for ground in (ours, theirs))
    assert found == expected and sum(map(len, expected)) > 9
    few = np.array([3, 0, 29])
    np.testing.assert_array_equal(theirs.metres(4, few), ours.metres(4, few))
    for chosen in (slice(0, 30), few):
        np.testing.assert_array_equal(theirs.on_map(theirs.database[chosen]), ours.on_map(images[chosen]))


LIES = {
    "fewer queries": ("search", lambda answer: answer[:1]),
    "more queries": ("search", lambda answer: [*answer, answer[0]]),
    "fewer hits": ("search", lambda answer: [hits[:3] for hits in answer]),
    "no hits": ("search", lambda answer: [[] for _ in answer]),
    "more hits": ("search", lambda answer: [hits + hits for hits in answer]),
    "one id twice": ("search", lambda answer: [[hits[0], *hits[:-1]] for hits in answer]),
    "a hit without an id": ("search", in_first(lambda hit: {"distance": 0.0})),
    "a hit that is None": ("search", in_first(lambda hit: None)),
    "an id beyond the index": ("search", set_field("id", ROWS)),
    "a negative id": ("search", set_field("id", -1)),
    "an id that is text": ("search", set_field("id", "7")),
    "an id with a fraction": ("search", set_field("id", 7.5)),
    "a distance of NaN": ("search", set_field("distance", float("nan"))),
    "a distance beyond the bits": ("search", set_field("distance", 513.0)),
    "a distance with a fraction": ("search", set_field("distance", 0.5)),
    "a distance of None": ("search", set_field("distance", None)),
    "a narrower descriptor": ("query", set_field("descriptor", [0.0] * 7)),
    "a scalar for a descriptor": ("query", set_field("descriptor", 1.0)),
    "NaN in a descriptor": ("query", set_field("descriptor", [float("nan")] * 512)),
    "None for a descriptor": ("query", set_field("descriptor", None)),
    "ragged descriptors": ("query", set_field("descriptor", [[1.0], [1.0, 2.0]])),
    "None for a path": ("query", set_field("path", None)),
    "a line break in a path": ("query", set_field("path", "a\nb")),
    "None for a position": ("query", set_field("easting", None)),
    "an infinite position": ("query", set_field("northing", float("inf"))),
    "a zone that does not exist": ("query", set_field("zone", 61)),
    "None for a zone": ("query", set_field("zone", None)),
    "a row without its fields": ("query", in_first(lambda row: {"id": row["id"]})),
    "a row that is None": ("query", lambda answer: answer if "count(*)" in answer[0] else [None, *answer[1:]]),
    "the same row twice": ("query", lambda answer: answer if "count(*)" in answer[0] else [answer[0], *answer[:-1]]),
    "a row too many": (
        "query",
        lambda answer: answer if "count(*)" in answer[0] else [*answer, {**answer[0], "id": 9999}],
    ),
    "a row too few": ("query", lambda answer: answer if "count(*)" in answer[0] else answer[:-1]),
    "no count": ("query", lambda answer: [] if "count(*)" in answer[0] else answer),
    "None for a count": ("query", lambda answer: [{"count(*)": None}] if "count(*)" in answer[0] else answer),
    "no description": ("describe_collection", lambda answer: {**answer, "description": None}),
    "no shards": ("describe_collection", lambda answer: {"description": answer["description"]}),
    "a state of text": (
        "describe_collection",
        lambda answer: {
            **answer,
            "properties": {"selavprplusplus.state": '{"images": "9", "end": 9}'},
        },
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_an_answer_that_cannot_be_right_is_an_error(index, table, name):
    export_index(index, ADDRESS)
    use(index)
    method, lie = LIES[name]
    table.lie[method] = lie
    with pytest.raises(InputError, match="cannot be right|that were asked for|was not written by|is damaged"):
        use(index)


def write_coded(folder, rows=40):
    """An index of random descriptors with codes of 24 bits."""
    random = np.random.default_rng(0)
    projections = Projections(coding=Coding("random", np.zeros(512), random.standard_normal((512, 24))))
    settings = ExtractionConfig(resize=(56, 56))
    metadata = metadata_of(build("vit-tiny"), settings, projections=projections)
    images = ImageSet.without_positions([f"/images/{i}.jpg" for i in range(rows)])
    descriptors = random.standard_normal((rows, 512), np.float32)
    with IndexWriter(IndexConfig(folder=folder), metadata, projections) as writer_of_index:
        writer_of_index.append(project(projections, Features(images, None, descriptors)))
        writer_of_index.features()
    return Index(folder)


def test_a_copy_holds_what_makes_codes_of_descriptors(tmp_path, table):
    index = write_coded(tmp_path / "index")
    for _ in range(2):  # a second export changes nothing
        export_index(index, ADDRESS, append=True)
        copy = open_index(ADDRESS)
        np.testing.assert_array_equal(copy.projections.coding.rows, index.projections.coding.rows)
        assert copy.metadata == index.metadata
        assert_same_results(index, copy, 20)


@pytest.mark.parametrize("upserts", range(3))
def test_an_export_with_codes_that_was_interrupted_continues(tmp_path, table, upserts):
    index = write_coded(tmp_path / "index")
    table.fail_after = upserts
    with pytest.raises(InputError, match="the server is gone"):
        export_index(index, ADDRESS)
    assert not is_searchable()
    table.fail_after = 10**9
    export_index(index, ADDRESS)
    assert_same_results(index, open_index(ADDRESS), 20)


def test_a_copy_with_another_coding_is_refused(tmp_path, table):
    export_index(write_coded(tmp_path / "index"), ADDRESS)
    table.rows["copy_coding"][3]["row"] = np.ones(512, np.float32)
    with pytest.raises(InputError, match="copy_coding holds another coding"):
        open_index(ADDRESS)
    del table.rows["copy_coding"][3]
    with pytest.raises(InputError, match="copy_coding holds 24 of 25 rows"):
        open_index(ADDRESS)


def test_a_bad_name_is_found_before_anything_is_changed(tmp_path, metadata, index, table):
    grown = write(tmp_path / "index", metadata, 1024)
    export_index(grown, ADDRESS)
    write(tmp_path / "index", metadata, 2048)
    bad = Index(tmp_path / "index")
    paths = list(bad.images.paths)
    paths[2000] = os.fsdecode(b"/images/caf\xe9.jpg")
    bad.images = replace(bad.images, paths=paths)
    table.calls.clear()
    with pytest.raises(InputError, match="is not UTF-8.*Rename the file"):
        export_index(bad, ADDRESS, append=True)
    assert not {"upsert", "alter_collection_properties", "create_collection"} & set(table.calls)
    assert len(open_index(ADDRESS)) == 1024
    assert export_index(Index(tmp_path / "index"), ADDRESS, append=True) == (1024, 0)
    assert len(open_index(ADDRESS)) == 2048


@pytest.mark.parametrize("upserts", [0, 1, 2, 3])
def test_an_interrupted_append_leaves_the_old_state_searchable_and_continues(tmp_path, metadata, table, upserts):
    small = write(tmp_path / "index", metadata, ROWS - 1)
    export_index(small, ADDRESS)
    large = write(tmp_path / "index", metadata, 3 * 1024 + ROWS)
    table.fail_after = upserts
    with pytest.raises(InputError, match="the server is gone"):
        export_index(large, ADDRESS, append=True)
    table.fail_after = 10**9
    copy = open_index(ADDRESS)
    assert len(copy) == ROWS - 1
    queries = large.features().codes[-3:]  # whose own rows may be there, but do not belong to the copy yet
    assert copy.features().codes.search(queries, 200).indices.max() < ROWS - 1
    assert export_index(large, ADDRESS, append=True) == (len(large) - len(small) - upserts // 2 * 1024, 0)
    assert_same_results(large, open_index(ADDRESS), 100)


def test_rows_of_an_abandoned_append_are_removed(tmp_path, metadata, table):
    small = write(tmp_path / "index", metadata, ROWS)
    export_index(small, ADDRESS)
    write(tmp_path / "other", metadata, ROWS)
    other = write(tmp_path / "other", metadata, 5 * 1024, seed=1)
    table.fail_after = 4
    with pytest.raises(InputError, match="the server is gone"):
        export_index(other, ADDRESS, append=True)
    table.fail_after = 10**9
    large = write(tmp_path / "index", metadata, ROWS + 1024)
    assert export_index(large, ADDRESS, append=True) == (1024, 0)
    assert_same_results(large, open_index(ADDRESS), 100)


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_of_an_index_that_lives_holds_its_earlier_or_its_present_state(
    tmp_path, metadata, table, monkeypatch, seed
):
    """Rows are added, replaced and removed, the files compacted, and exports interrupted at any change."""
    living = LivingIndex(tmp_path / "index", replace(metadata, descriptor_dim=8), seed)
    random = np.random.default_rng(seed)
    monkeypatch.setattr(writer, "CHUNK_SIZE", 20)
    held = None  # what the copy holds
    for _ in range(15):
        for _ in range(random.integers(1, 4)):
            living.change()
        index = Index(living.folder)
        table.changes_left = int(random.integers(0, 15))
        try:
            export_index(index, ADDRESS, append=True)
            assert export_index(index, ADDRESS) == (0, 0)
            held = index
            assert set(table.rows["copy"]) == set(table.rows["copy_descriptors"]) == set(index.ids.tolist())
        except InputError as error:
            assert "the server is gone" in str(error)
        table.changes_left = 10**9
        if held or is_searchable():
            copy = open_index(ADDRESS)
            held = next(state for state in (held, index) if state and is_copy(state, copy))
            assert_same_results(held, copy, 30)
    export_index(index, ADDRESS, append=True)
    assert_same_results(index, open_index(ADDRESS), 30)


def living(folder, metadata):
    """An index with gaps, and a copy of it."""
    index = LivingIndex(folder, metadata, 0)
    for kind in ("add", "add", "remove"):
        index.change(kind)
    export_index(Index(folder), ADDRESS)
    return index


def test_only_a_copy_with_gaps_reads_all_ids(tmp_path, metadata, index, table, monkeypatch):
    requests = []
    monkeypatch.setitem(table.lie, "query", lambda answer: requests.append(answer) or answer)
    export_index(index, ADDRESS)
    requests.clear()
    open_index(ADDRESS)
    assert len(requests) == 2 and all("count(*)" in answer[0] for answer in requests)
    table.found.clear()
    gaps = living(tmp_path / "index", metadata)
    requests.clear()
    open_index(ADDRESS)
    assert [len(answer) for answer in requests] == [1, 1, len(Index(gaps.folder))]


@pytest.mark.parametrize("strange", ["a gap", "beyond the last", "before the first"])
def test_a_hit_that_is_no_image_of_a_copy_with_gaps_is_an_error(tmp_path, metadata, table, strange):
    index = Index(living(tmp_path / "index", metadata).folder)
    gap = np.setdiff1d(np.arange(index.ids[-1]), index.ids)[0]
    copy, number = open_index(ADDRESS), {"a gap": int(gap), "before the first": -1}.get(strange, int(index.ids[-1]) + 1)
    table.lie["search"] = set_field("id", number)
    with pytest.raises(InputError, match=f"cannot be right: a hit with the id {number}"):
        copy.features().codes.search(index.features().codes[:1], 5)


def test_many_images_are_removed_in_steps(tmp_path, metadata, table, monkeypatch):
    index = living(tmp_path / "index", metadata)
    before = Index(index.folder)
    for _ in range(4):
        index.change("remove")
    index.change("add")
    after = Index(index.folder)
    monkeypatch.setattr(writer, "MAX_REMOVED", 3)
    seen, delete = [], table.delete

    def look(name, **options):
        copy = open_index(ADDRESS)
        paths = set(copy.images.paths)
        assert set(after.images.paths) <= paths <= {*before.images.paths, *after.images.paths}
        found = copy.features().codes.search(after.features().codes[:1], len(copy)).indices
        assert sorted(found[0]) == list(range(len(copy)))
        seen.append(len(paths))
        delete(name, **options)

    monkeypatch.setattr(table, "delete", look)
    removed = len(np.setdiff1d(before.ids, after.ids))
    assert export_index(after, ADDRESS, append=True) == (len(np.setdiff1d(after.ids, before.ids)), removed)
    assert len(seen) > 8 and seen == sorted(seen, reverse=True) and seen[-1] == len(after)
    assert_same_results(after, open_index(ADDRESS), 30)


def test_what_is_gone_and_what_is_missing_needs_append(tmp_path, metadata, table):
    index = living(tmp_path / "index", metadata)
    before = Index(index.folder)
    for kind in ("add", "remove"):
        index.change(kind)
    after = Index(index.folder)
    missing, gone = len(np.setdiff1d(after.ids, before.ids)), len(np.setdiff1d(before.ids, after.ids))
    with pytest.raises(InputError, match=f"it lacks {missing} images, and {gone} of its images are gone. Use --append"):
        export_index(after, ADDRESS)
    export_index(after, ADDRESS, append=True)
    with pytest.raises(InputError, match="holds a later state of"):
        export_index(before, ADDRESS, append=True)


def test_an_index_that_went_another_way_is_refused(tmp_path, metadata, table):
    index = living(tmp_path / "index", metadata)
    shutil.copytree(index.folder, tmp_path / "backup")
    index.change("add")
    export_index(Index(index.folder), ADDRESS, append=True)
    other = LivingIndex(tmp_path / "other", metadata, 1)
    restored = LivingIndex.__new__(LivingIndex)
    restored.__dict__ |= {**index.__dict__, "folder": tmp_path / "backup"}
    for changed in (restored, other):
        for kind in ("add", "add", "add", "compact"):
            changed.change(kind)
        with pytest.raises(InputError, match="holds another index"):
            export_index(Index(changed.folder), ADDRESS, append=True)
    assert_same_results(Index(index.folder), open_index(ADDRESS), 30)


def test_an_index_whose_images_were_all_replaced_is_still_the_same(tmp_path, metadata, table):
    index = living(tmp_path / "index", metadata)
    ids = Index(index.folder).ids
    while Index(index.folder).ids[0] < ids[-1]:
        index.change("replace")
    found = Index(index.folder)
    assert export_index(found, ADDRESS, append=True) == (len(found), len(ids))
    assert_same_results(found, open_index(ADDRESS), 30)


def test_an_index_that_changes_after_it_was_opened_says_so(tmp_path, metadata, table):
    index = living(tmp_path / "index", metadata)
    copy, codes = open_index(ADDRESS), Index(index.folder).features().codes[:1]
    for kind in ("add", "remove"):
        index.change(kind)
    export_index(Index(index.folder), ADDRESS, append=True)
    with pytest.raises(InputError, match="has been changed since it was opened. Open it again"):
        copy.features().codes.search(codes, len(copy))
    assert_same_results(Index(index.folder), open_index(ADDRESS), 30)
