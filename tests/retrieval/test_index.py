"""The index: what is written comes back, chunks are complete or absent, damage is refused, a kill loses nothing."""

import hashlib
import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evaluations import SCRIPTS, evaluate, flags_for
from helpers.indexes import SETTINGS, build_in_pairs, content, features_of, make_chunk, write, writer_of
from helpers.models import build
from helpers.processes import run_here, run_script

from datasets.image_set import ImageSet
from model import InputError
from model.index import files
from model.index.files import PathList
from model.index.manifest import MANIFEST
from model.index.metadata import METADATA, RECORD, read_projections
from model.saving import lock_folder
from utils.retrieval.config import ExtractionConfig, IndexConfig
from utils.retrieval.index import Index, IndexMetadata, metadata_of, turned_as
from utils.retrieval.search import rerank, search

pytestmark = pytest.mark.slow

MODEL = {"backbone": "vit-tiny", "aggregation": "gem", "hashing": True, "rerank": True}
HUB = {"repository": "o/r", "commit": "1", "entry": "f", "arguments": {}, "batch_dependent": False}
HUB_DAMAGE = (
    *({"repository": value} for value in ("", None, 3, "o/r\n", "x" * 5000)),
    *({"commit": None}, {"entry": ["f"]}, {"batch_dependent": 0}, {"hashing": False}, {"another": 1}),
    *({"arguments": value} for value in (None, [], {"a b": 1}, {"a": [1]}, {"a": {}}, {"a": float("nan")})),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("vit-tiny", "gem", hashing=True, rerank=True)


@pytest.fixture(scope="module")
def metadata(model):
    return metadata_of(model, SETTINGS)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0), ("fp16", 2e-3)])
def test_what_was_written_comes_back(tmp_path, model, dtype, tolerance):
    config = IndexConfig(folder=tmp_path / "index", descriptor_dtype=dtype)
    index = Index(write(tmp_path / "index", metadata_of(model, SETTINGS, config), [3, 1, 5]))
    chunks = [make_chunk(first, size) for first, size in ((0, 3), (3, 1), (4, 5))]
    images, codes, descriptors, _ = index.features()
    assert len(index) == len(images) == 9 and index.metadata.weights_file == "published"
    assert list(images.paths) == [path for chunk in chunks for path in chunk.images.paths]
    assert images.paths[-1] == "/images/é 8\t.jpg" and images.paths[-9] == images.paths[0]
    assert images[2:5].paths == images.paths[2:5] == [images.paths[i] for i in (2, 3, 4)]
    np.testing.assert_array_equal(images.utms, np.concatenate([chunk.images.utms for chunk in chunks]))
    np.testing.assert_array_equal(codes, np.concatenate([chunk.codes for chunk in chunks]))
    assert descriptors.dtype == {"fp32": np.float32, "fp16": np.float16}[dtype]
    np.testing.assert_allclose(
        descriptors[:], np.concatenate([chunk.descriptors for chunk in chunks]), atol=tolerance, rtol=0
    )


@pytest.mark.parametrize("mode", [{}, {"hashing": True}])
def test_a_model_of_one_branch_keeps_that_branch_alone(tmp_path, mode):
    chunk = make_chunk(0, 4)
    saved = chunk._replace(descriptors=None) if mode else chunk._replace(codes=None)
    with writer_of(tmp_path / "index", metadata_of(build("vit-tiny", "gem", **mode), SETTINGS)) as writer:
        writer.append(saved)
        writer.features()
    for actual, expected in zip(Index(tmp_path / "index").features()[1:3], saved[1:3], strict=True):
        assert (actual is None) == (expected is None)
        if expected is not None:
            np.testing.assert_array_equal(actual[:], expected)


def test_appending_gives_the_files_of_one_run(tmp_path, metadata):
    complete = write(tmp_path / "complete", metadata, [4, 4, 2])
    parts = write(tmp_path / "parts", metadata, [4])
    write(parts, metadata, [4], append=True, first=4)
    with writer_of(parts, metadata, append=True) as writer:
        wanted = make_chunk(2, 10).images
        assert wanted[writer.to_extract(wanted)].paths == [f"/images/é {i}\t.jpg" for i in range(8, 12)]
    write(parts, metadata, [2], append=True, first=8)
    assert content(parts) == content(complete)


def test_appending_that_adds_nothing_leaves_the_index_complete(tmp_path, metadata):
    folder = write(tmp_path / "index", metadata, [4])
    before = content(folder)
    with writer_of(folder, metadata, append=True) as writer, pytest.raises(InputError, match="line break"):
        writer.to_extract(ImageSet.at_utms(["a\nb.jpg"], np.zeros((1, 2))))
    assert content(folder) == before and len(Index(folder)) == 4
    with writer_of(folder, metadata, append=True) as writer:
        writer.features()
    assert content(folder) == before


def test_appending_warns_of_positions_that_the_index_keeps(tmp_path, metadata, caplog):
    folder = tmp_path / "index"
    images = ImageSet.at_utms(["/a.jpg", "/b.jpg", "/c.jpg"], np.array([[1, 2], [np.nan, np.nan], [5, 6]]))
    with writer_of(folder, metadata) as writer:
        writer.append(make_chunk(0, 3)._replace(images=images))
        writer.features()
    nowhere = [np.nan, np.nan]
    for utms, count, first in (
        ([[1, 2], nowhere, [5, 6.001]], 0, None),
        ([nowhere, nowhere, nowhere], 0, None),
        ([[1, 2], [3, 4], [5, 6]], 1, "/b.jpg"),
        ([[1.1, 2], [3, 4], [5, 6]], 2, "/a.jpg"),
    ):
        caplog.clear()
        with writer_of(folder, metadata, append=True) as writer:
            assert not len(writer.to_extract(ImageSet.at_utms(images.paths, np.array(utms))))
            new = writer.to_extract(ImageSet.at_utms(["/c.jpg", "/d.jpg"], np.array([utms[2], [7, 8]])))
            assert new.tolist() == [1]
        expected = [f"{count} images are in the index {folder} already, with other positions or none, such as {first}."]
        assert [message.split(" The index keeps")[0] for message in caplog.messages] == expected * (count > 0)
    np.testing.assert_array_equal(Index(folder).images.utms, images.utms)
    caplog.clear()
    for degrees, count in (((55.1, 12.0), 1), ((np.nan, np.nan), 0)):
        with writer_of(folder, metadata, append=True) as writer:
            writer.to_extract(ImageSet.at_degrees(["/b.jpg"], np.array([degrees])))
        assert len(caplog.messages) == count
        caplog.clear()


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_an_interrupted_chunk_is_absent_and_is_overwritten(tmp_path, metadata, cut, dtype):
    """Killed while a chunk was written: each file holds some bytes of it, the manifest at most a part of its line."""
    metadata = replace(metadata, descriptor_dtype=dtype)
    complete = write(tmp_path / "complete", metadata, [4, 4])
    broken = write(tmp_path / "broken", metadata, [4])
    random = np.random.default_rng(cut)
    for name, data in content(complete).items():
        before = (broken / name).stat().st_size
        if name not in (METADATA, MANIFEST):
            (broken / name).write_bytes(data[: random.integers(before, len(data) + 1)])
    header, first, second, _ = (complete / MANIFEST).read_bytes().splitlines(keepends=True)
    (broken / MANIFEST).write_bytes(header + first + second[:cut])
    index = Index(broken, allow_incomplete=True)
    assert len(index) == 4 and len(index.images.paths) == 4
    write(broken, metadata, [4], append=True, first=4)
    assert content(broken) == content(complete)


@pytest.mark.parametrize("name", ["codes.bin", "descriptors.bin", "images.bin", "paths.txt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("read", ["load", "append"])
def test_damage_is_refused_and_named(tmp_path, metadata, name, damage, read):
    folder = write(tmp_path / "index", metadata, [3, 3])
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) - 5] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-9])
    before = content(folder)
    if (read, damage) == ("append", "flip") and name in ("codes.bin", "descriptors.bin"):
        read = "load"  # appending does not read these: its cost grows with what is new
    with pytest.raises(InputError) as caught:
        Index(folder) if read == "load" else writer_of(folder, metadata, append=True)
    assert name in str(caught.value) and "Rebuild" in str(caught.value)
    assert content(folder) == before


@pytest.mark.parametrize("name", ["codes.bin", "descriptors.bin", "images.bin", "paths.txt"])
def test_a_file_that_is_too_short_is_refused_even_if_trusted(tmp_path, metadata, name):
    path = write(tmp_path / "index", metadata, [3, 3]) / name
    path.write_bytes(path.read_bytes()[:-9])
    for read in (lambda: Index(path.parent, verify=False), lambda: writer_of(path.parent, metadata, append=True)):
        with pytest.raises(InputError, match=name):
            read()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (METADATA, "{", ["metadata.json", "damaged"]),
        (METADATA, '{"format": 4}', ["format 4; this version reads format 6. Rebuild the index with build_index.py"]),
        (METADATA, '{"format": 5}', ["format 5; this version reads format 6. Convert it: build_index.py --merge"]),
        (METADATA, '{"format": 7}', ["format 7; this version reads format 6"]),
        (METADATA, "[]", ["metadata.json", "damaged"]),
        (METADATA, '{"format": 6}', ["metadata.json", "damaged"]),
        (METADATA, 10**5 * "[", ["metadata.json", "damaged", "nested too deeply"]),
        (METADATA, '{"format": ' + 5000 * "9" + "}", ["metadata.json", "damaged"]),
        (METADATA, '{"format": 6.0}', ["metadata.json", "damaged"]),
        (METADATA, '{"format": 6, "format": 6}', ["metadata.json", "damaged", "twice"]),
        (MANIFEST, "no json\n", ["manifest.jsonl", "damaged"]),
        (MANIFEST, 10**5 * "[" + "\n", ["manifest.jsonl", "damaged", "nested too deeply"]),
        (MANIFEST, '{"images": ' + 5000 * "9" + "}\n", ["manifest.jsonl", "damaged"]),
        (MANIFEST, "", ["is empty"]),
    ],
)
def test_other_files_are_refused(tmp_path, metadata, name, text, words):
    folder = write(tmp_path / "index", metadata, [3])
    (folder / name).write_text(text)
    with pytest.raises(InputError) as caught:
        Index(folder)
    assert all(word in str(caught.value) for word in words), caught.value


def test_no_index_there(tmp_path):
    with pytest.raises(InputError, match="build_index.py creates one"):
        Index(tmp_path)


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path, metadata):
    (tmp_path / "notes.txt").write_text("mine")
    for append in (False, True):
        with pytest.raises(InputError, match="notes.txt but no metadata.json"):
            writer_of(tmp_path, metadata, append)
    os.mkfifo(tmp_path / "fifo")
    for name, words in (
        ("notes.txt", "notes.txt is a file"),
        ("fifo", "fifo is not a folder"),
        ("notes.txt/index", "Cannot create the folder .*notes.txt/index"),
    ):
        with pytest.raises(InputError, match=words):
            writer_of(tmp_path / name, metadata)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "notes.txt"]
    before = content(write(tmp_path / "index", metadata, [2]))
    with pytest.raises(InputError, match="--append"):
        writer_of(tmp_path / "index", metadata)
    assert content(tmp_path / "index") == before


@pytest.mark.parametrize("read", ["load", "append"])
@pytest.mark.parametrize("left", [None, 0, 1])
def test_a_lost_or_truncated_manifest_is_not_an_interrupted_chunk(tmp_path, metadata, monkeypatch, read, left):
    """Nothing may be cut off for it: the features took hours."""
    monkeypatch.setattr("model.index.files.CHUNK_SIZE", 3)
    folder = write(tmp_path / "index", metadata, [3, 3, 3])
    header, *lines = (folder / MANIFEST).read_bytes().splitlines(keepends=True)
    if left is None:
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_bytes(header + b"".join(lines[:left]))
    before = content(folder)
    with pytest.raises(InputError, match="manifest.jsonl is missing or truncated"):
        Index(folder) if read == "load" else writer_of(folder, metadata, append=True)
    assert content(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        *({"resize": value} for value in (5, [56, "56"], [56, 57], [56.0, 56], [56], [14 * 400, 14], [10**400, 14])),
        *({"descriptor_dim": value} for value in (0, -1, 1 << 17, 10**400)),
        *({"positions": value} for value in (32, True)),
        *({"weights_file": 3}, {"weights_sha256": None}),
        *(
            {"model": value}
            for value in (None, 3, "vit-tiny", [], {}, {**MODEL, "another": 1}, {"backbone": "vit-tiny"})
        ),
        *({"model": MODEL | change} for change in ({"backbone": "resnet50"}, {"hashing": "yes"}, {"hashing": 1})),
        *({"model": HUB | change} for change in HUB_DAMAGE),
        *({"descriptor_dtype": "zz"}, {"another": 1}, {"format": 6.0}),
    ],
    ids=lambda change: str(change)[:40],
)
@pytest.mark.parametrize("read", ["load", "append"])
def test_metadata_that_is_not_valid(tmp_path, metadata, change, read):
    folder = write(tmp_path / "index", metadata, [2])
    changed = json.loads((folder / METADATA).read_text())
    changed.update(change)
    (folder / METADATA).write_text(json.dumps(changed))
    with pytest.raises(InputError, match="metadata.json is damaged"):
        IndexMetadata.read(folder)  # whatever the checksum is
    with pytest.raises(InputError, match="metadata.json is damaged"):
        Index(folder) if read == "load" else writer_of(folder, metadata, append=True)


def forge(folder, name, change):
    """Changes a JSON object of the index, the first chunk of the manifest or the metadata, to `change(object)`."""
    lines = (folder / name).read_bytes().splitlines() if name == MANIFEST else [(folder / name).read_bytes()]
    place = min(1, len(lines) - 1)
    content = change(json.loads(lines[place]))
    lines[place] = (content if isinstance(content, str) else json.dumps(content)).encode()
    (folder / name).write_bytes(b"\n".join([*lines, b""]))


@pytest.mark.parametrize(
    "change",
    [
        *({"images": value} for value in (True, 3.0, "3", None, [3], 0, -3, 1025, 2**63, 10**400, float("inf"))),
        *({"path_bytes": value} for value in (True, 50.0, "50", None, 0, -1, 2, 2**31, 2**64, float("nan"))),
        {"sha256": None},
        {"images": 1025, "path_bytes": 30_000},
        {"sha256": []},
        {"more": 1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_manifest_with_values_that_no_chunk_has_is_refused_even_if_trusted(tmp_path, metadata, change):
    folder = write(tmp_path / "index", metadata, [3, 3])
    forge(folder, MANIFEST, lambda chunk: {**chunk, **change})
    with pytest.raises(InputError, match="manifest.jsonl is damaged: ValueError..a chunk "):
        Index(folder, verify=False)


@pytest.mark.parametrize("change", [{"images": 2}, {"images": 4}, {"path_bytes": 40}, {"path_bytes": 60}], ids=str)
@pytest.mark.parametrize("complete", [True, False])
def test_a_manifest_with_other_numbers_is_refused_even_if_trusted(tmp_path, metadata, change, complete):
    folder = write(tmp_path / "index", metadata, [3, 3])
    if not complete:
        lines = (folder / MANIFEST).read_bytes().splitlines(keepends=True)
        (folder / MANIFEST).write_bytes(b"".join(lines[:-1]))
    forge(folder, MANIFEST, lambda chunk: {**chunk, **change})
    with pytest.raises(InputError, match="manifest.jsonl is damaged|paths.txt is|images.bin is"):
        Index(folder, verify=False, allow_incomplete=True)


@pytest.mark.parametrize("field", ["images", "path_bytes", "sha256"])
def test_a_manifest_with_a_field_missing_or_twice_is_refused(tmp_path, metadata, field):
    folder = write(tmp_path / "index", metadata, [3])
    before = (folder / MANIFEST).read_bytes()
    forge(folder, MANIFEST, lambda chunk: {name: value for name, value in chunk.items() if name != field})
    with pytest.raises(InputError, match="manifest.jsonl is damaged.*a chunk with the fields"):
        Index(folder, verify=False)
    (folder / MANIFEST).write_bytes(before)
    forge(folder, MANIFEST, lambda chunk: json.dumps(chunk)[:-1] + f', "{field}": {json.dumps(chunk[field])}}}')
    with pytest.raises(InputError, match="manifest.jsonl is damaged.*a field appears twice"):
        Index(folder, verify=False)


@pytest.mark.parametrize(
    "mark", ['{"complete": 5}', '{"complete": 3.0}', '{"complete": null}', '{"complete": 3, "a": 1}']
)
def test_an_end_mark_with_another_number_is_refused(tmp_path, metadata, mark):
    folder = write(tmp_path / "index", metadata, [3])
    header, line, _ = (folder / MANIFEST).read_bytes().splitlines(keepends=True)
    (folder / MANIFEST).write_bytes(header + line + mark.encode() + b"\n")
    for read in (lambda: Index(folder, verify=False), lambda: writer_of(folder, metadata, append=True)):
        with pytest.raises(InputError, match="manifest.jsonl is damaged.*the end mark"):
            read()


@pytest.mark.parametrize("end", [b"", b'{"complete": 3}'])
def test_without_an_end_mark_an_index_is_incomplete(tmp_path, metadata, end, caplog):
    folder = write(tmp_path / "index", metadata, [3])
    header, line, _ = (folder / MANIFEST).read_bytes().splitlines(keepends=True)
    (folder / MANIFEST).write_bytes(header + line + end)
    with pytest.raises(InputError, match="is incomplete: it holds 3 images"):
        Index(folder)
    with caplog.at_level("INFO"):
        assert len(Index(folder, allow_incomplete=True)) == 3
    assert any("holds 3 images" in message for message in caplog.messages)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "is incomplete" in warning.getMessage()
    write(folder, metadata, [], append=True)
    assert len(Index(folder)) == 3


def test_readers_see_the_state_before_until_a_change_is_complete(tmp_path, metadata, caplog):
    folder = write(tmp_path / "index", metadata, [3])
    before = features_of(folder)
    with writer_of(folder, metadata, append=True) as writer:
        writer.append(make_chunk(3, 2))
        assert features_of(folder) == before
        assert "2 images are not searched yet" in caplog.text
        assert len(Index(folder, allow_incomplete=True)) == 5
    assert features_of(folder) == before
    write(folder, metadata, [], append=True)
    assert features_of(folder)[0] == [f"/images/é {i}\t.jpg" for i in range(5)]


def test_metadata_with_a_forged_checksum_does_not_misread_descriptors(tmp_path, model, metadata):
    """A checksum does not keep out who computes it anew; the sizes of the files do."""
    folder = write(tmp_path / "index", metadata, [3])
    types = [{"descriptor_dtype": dtype} for dtype in ("fp16", "int8")]
    for change in ({"descriptor_dim": 256}, *types, {"descriptor_dim": 1 << 40}):
        copy = shutil.copytree(folder, tmp_path / str(change))
        forge(copy, METADATA, lambda content: {**content, **change})  # noqa: B023 - called at once
        checksum = hashlib.sha256((copy / METADATA).read_bytes()).hexdigest()
        forge(copy, MANIFEST, lambda chunk: {**chunk, "sha256": {**chunk["sha256"], METADATA: checksum}})  # noqa: B023
        with pytest.raises(InputError, match="(descriptors|scales).bin is (damaged|missing)|metadata.json is damaged"):
            Index(copy)
    narrow = write_small(tmp_path / "narrow", metadata)
    with pytest.raises(InputError, match="descriptor_dim 4 .now 512."):
        Index(narrow).metadata.require_compatible(metadata_of(model, SETTINGS), narrow)


@pytest.mark.parametrize(
    ("name", "position"),
    [
        *(("utms", value) for value in ((np.inf, 1), (1, -np.inf), (np.nan, 1), (3e38, 1), (1, -1e17))),
        *(("degrees", value) for value in ((90.1, 0), (0, -180.1), (np.inf, 0), (0, np.nan))),
        *(("zones", value) for value in (61, -61, -128)),
    ],
)
def test_a_position_that_is_none_is_refused(tmp_path, metadata, name, position):
    folder = write(tmp_path / "index", metadata, [3])
    names = {"utms": ["easting", "northing"], "zones": ["zone"], "degrees": ["latitude", "longitude"]}[name]
    records = np.fromfile(folder / "images.bin", RECORD)
    for field, value in zip(names, np.atleast_1d(position), strict=True):
        records[field][1] = value
    (folder / "images.bin").write_bytes(records.tobytes())
    with pytest.raises(InputError, match="images.bin is damaged: the position of image 1"):
        Index(folder, verify=False)


def test_the_index_decides_how_queries_are_turned(metadata):
    stored, upright = (replace(metadata, exif_orientation=turned) for turned in (False, True))
    usual, asked = (ExtractionConfig(exif_orientation=turned, batch_size=3) for turned in (False, True))
    assert turned_as(stored, usual) == usual
    assert turned_as(upright, usual) == turned_as(upright, asked) == asked
    with pytest.raises(InputError, match="Leave --exif_orientation out"):
        turned_as(stored, asked)


def test_positions_come_back(tmp_path, metadata):
    images, expected = (
        Index(write(tmp_path / "index", metadata, [3, 4])).images,
        ImageSet.joined([make_chunk(0, 3).images, make_chunk(3, 4).images]),
    )
    for name in ("utms", "zones", "degrees"):
        np.testing.assert_array_equal(getattr(images, name), getattr(expected, name))
        np.testing.assert_array_equal(getattr(images[2:5], name), getattr(expected, name)[2:5])
        assert getattr(images, name).dtype == getattr(expected, name).dtype
    assert set(images.zones) == {32, -56, 0}


@pytest.mark.parametrize("field", [field.name for field in fields(IndexMetadata)])
def test_metadata_without_one_of_its_fields_is_refused(tmp_path, metadata, field):
    folder = write(tmp_path / "index", metadata, [2])
    forge(folder, METADATA, lambda content: {name: value for name, value in content.items() if name != field})
    with pytest.raises(InputError, match="metadata.json is damaged"):
        IndexMetadata.read(folder)


def write_small(folder, metadata):
    """An index of 3 images with descriptors of 4 dimensions: few enough bytes to try them all."""
    with writer_of(folder, replace(metadata, descriptor_dim=4)) as writer:
        for first, count in ((0, 2), (2, 1)):
            chunk = make_chunk(first, count)
            writer.append(chunk._replace(descriptors=chunk.descriptors[:, :4]))
        writer.features()
    return folder


def search_all(folder, verify):
    """What an index gives: paths, positions, and the results of a search with re-ranking."""
    index = Index(folder, verify=verify)
    database = index.features()
    chunk = make_chunk(1, 2)
    queries = chunk._replace(descriptors=chunk.descriptors[:, :4])
    results = rerank(search(database, queries, 3), database, queries, rerank_num=2)
    assert results.distances.shape == results.indices.shape == (2, 3)
    assert len(index.images.paths) == 3 and database.images.utms.shape == (3, 2)
    assert all(0 <= index < 3 for index in results.indices.ravel())
    return list(index.images.paths), database.images.utms.tolist(), results.distances.tolist(), results.indices.tolist()


@pytest.mark.filterwarnings("ignore:overflow")  # of descriptors whose exponent was flipped
@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.proof)])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", [METADATA, MANIFEST, "paths.txt", "codes.bin", "images.bin", "descriptors.bin"])
def test_a_flipped_bit_is_found_or_does_no_harm(tmp_path, metadata, name, verify, step):
    """Without verification, features may change unnoticed; what describes them may not."""
    folder = write_small(tmp_path / "index", metadata)
    expected = search_all(folder, True)
    data, refused = bytearray((folder / name).read_bytes()), 0
    positions = range(0, len(data), step)
    for position in positions:
        bit = 1 << position % 8
        data[position] ^= bit
        (folder / name).write_bytes(data)
        data[position] ^= bit
        try:
            results = search_all(folder, verify)
        except InputError:
            refused += 1
        else:
            assert results == expected or (name not in (METADATA, MANIFEST) and not verify), position
    covered = verify or name == METADATA
    assert refused == len(positions) if covered else refused < len(positions)


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, metadata, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="paths.txt: No space left"), writer_of(tmp_path / "index", metadata) as writer:
        writer.append(make_chunk(0, 3))
        monkeypatch.setattr(os, "fsync", refuse)
        writer.append(make_chunk(3, 3))
    assert len(Index(tmp_path / "index", allow_incomplete=True)) == 3


def test_a_name_that_is_no_utf8(tmp_path, metadata):
    chunk = make_chunk(0, 2)
    paths = [chunk.images.paths[0], os.fsdecode(b"/images/\xff.jpg")]
    with writer_of(tmp_path / "index", metadata) as writer:
        writer.append(chunk._replace(images=ImageSet.at_utms(paths, chunk.images.utms)))
        writer.features()
    assert list(Index(tmp_path / "index").images.paths) == paths


def test_two_writers_keep_out_of_each_others_way(tmp_path, metadata, monkeypatch):
    monkeypatch.setattr("model.saving.LOCK_SECONDS", 0.2)
    with lock_folder(tmp_path), pytest.raises(InputError, match="Another process is writing to"):
        writer_of(tmp_path, metadata, append=True)


@pytest.mark.parametrize("locks", [True, False])
def test_of_two_builders_that_start_together_one_builds_the_index(tmp_path, metadata, monkeypatch, locks):
    """Without the lock, too, as on file systems that have none."""
    if not locks:
        monkeypatch.setattr("model.saving.try_lock", lambda descriptor: None)
    assert build_in_pairs(tmp_path, metadata, pairs=40) == {"one index, one error": 40}


def test_an_index_is_not_written_through_a_link(tmp_path, metadata):
    folder = write(tmp_path / "index", metadata, [3])
    (folder / "codes.bin").rename(tmp_path / "elsewhere")
    (folder / "codes.bin").symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(InputError, match="codes.bin is a symbolic link"), writer_of(folder, metadata, append=True):
        pass
    assert (tmp_path / "elsewhere").read_bytes() == before and len(Index(folder)) == 3


@pytest.mark.parametrize("name", ["metadata.json", "manifest.jsonl", "paths.txt", "codes.bin", "pca.bin"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_in_place_of_files_are_refused_at_once(tmp_path, metadata, name, kind):
    folder = write(tmp_path / "index", metadata, [3])
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"{name} is (a {kind}|missing)"):
        Index(folder)
        read_projections(folder, replace(metadata, pca_input_dim=1024, pca_sha256="0"))


def test_a_file_that_no_index_has_is_refused_before_it_is_read(tmp_path, metadata):
    folder = write(tmp_path / "index", metadata, [3])
    os.truncate(folder / "metadata.json", 1 << 40)  # sparse
    with pytest.raises(InputError, match="metadata.json is too large"):
        Index(folder)


@pytest.mark.parametrize("change", [{"resize": (70, 56)}, {"antialias": False}, {"model": 1}])
def test_another_models_or_resizes_index_is_refused(tmp_path, model, metadata, change):
    index = Index(write(tmp_path / "index", metadata, [3]))
    elsewhere = IndexConfig(folder=tmp_path, weights=Path("elsewhere.pth"), descriptor_dtype="fp16")
    index.metadata.require_compatible(metadata_of(model, replace(SETTINGS, batch_size=3), elsewhere), index)
    torch.manual_seed(1)
    other = build("vit-tiny", "gem", hashing=True, rerank=True) if "model" in change else model
    changed = metadata_of(other, SETTINGS if "model" in change else replace(SETTINGS, **change))
    with pytest.raises(InputError, match="another model or resize"):
        index.metadata.require_compatible(changed, index)
    with pytest.raises(InputError, match="built differently"):
        writer_of(tmp_path / "index", changed, append=True)


def test_the_fingerprint_sees_every_value():
    model = build("vit-tiny", "gem")
    before = model.fingerprint
    assert model.fingerprint == before
    with torch.no_grad():
        model.linear2.bias[-1] += 1e-7
    assert model.fingerprint != before


def test_names_around_the_blocks_in_which_they_are_read(tmp_path):
    names = ["x" * (1 << 20), "", "y", "z" * ((1 << 20) - 3), "end"]
    (tmp_path / "paths.txt").write_text("".join(f"{name}\n" for name in names))
    assert list(PathList((tmp_path / "paths.txt").open("rb"), (tmp_path / "paths.txt").stat().st_size, 5)) == names


@pytest.mark.parametrize("root", ["", "/", "/data/my images"])
def test_paths_are_the_same_one_by_one_and_all_at_once(tmp_path, monkeypatch, root):
    monkeypatch.setattr(files, "PATHS_AT_ONCE", 3)
    names = [b"./a.jpg", b"/elsewhere/b.jpg", b"", b"./c/\xc3\xa9.jpg", b"./cut \xc3", b"\xa9/x", b"./\xff/y.jpg"]
    text = b"".join(name + b"\n" for name in names)
    (tmp_path / "paths.txt").write_bytes(text)
    paths = PathList((tmp_path / "paths.txt").open("rb"), len(text), len(names), root=root)
    decoded = map(os.fsdecode, names)
    expected = [os.path.join(root, name[2:]) if root and name.startswith("./") else name for name in decoded]
    assert list(paths) == [paths[i] for i in range(len(names))] == expected


@pytest.mark.parametrize(("text", "words"), [("a\nb", "one line for each of 1 images"), ("a\0b\n", "a NUL byte")])
def test_paths_without_their_end_or_with_a_nul_byte_are_refused(tmp_path, text, words):
    (tmp_path / "paths.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        PathList((tmp_path / "paths.txt").open("rb"), len(text), 1)


@pytest.mark.parametrize("mode", SCRIPTS)
def test_saved_and_loaded_it_gives_the_plain_runs_predictions(tmp_path, tiny_benchmark, checkpoints, mode):
    expected = evaluate(mode, tiny_benchmark, checkpoints[mode], tmp_path)
    assert evaluate(mode, tiny_benchmark, checkpoints[mode], tmp_path, "--save_index=index") == expected
    bare = tmp_path / "bare"  # the queries alone: the database's images are not read
    shutil.copytree(
        tiny_benchmark / "tiny" / "images" / "test" / "queries", bare / "tiny" / "images" / "test" / "queries"
    )
    loaded = evaluate(mode, bare, checkpoints[mode], tmp_path, "--load_index=index")
    assert loaded.replace(f"{tiny_benchmark}/tiny/images/test/", "") == expected


def test_an_incomplete_index_is_searched_only_on_request(tmp_path, tiny_benchmark, checkpoints):
    evaluate("two_branch", tiny_benchmark, checkpoints["two_branch"], tmp_path, "--save_index=index")
    lines = (tmp_path / "index" / MANIFEST).read_bytes().splitlines(keepends=True)
    (tmp_path / "index" / MANIFEST).write_bytes(b"".join(lines[:-1]))
    command = ["eval_rerank.py", *flags_for(tiny_benchmark, checkpoints["two_branch"], "--load_index=index")]
    result = run_here(*command, cwd=tmp_path)
    assert result.status == 2 and "is incomplete: it holds 16 images" in result.stderr
    result = run_script(*command, "--allow_incomplete_index", cwd=tmp_path)
    assert result.status == 0 and "The index index is incomplete" in result.stdout + result.stderr


def test_a_part_then_the_rest(tmp_path, tiny_benchmark, checkpoints):
    """A database that has grown since: the index gets what it lacks, in the same batches, to the last bit."""
    expected = evaluate("two_branch", tiny_benchmark, checkpoints["two_branch"], tmp_path, "--infer_batch_size=2")
    grown = tmp_path / "grown"
    shutil.copytree(tiny_benchmark, grown)
    images = sorted((grown / "tiny" / "images" / "test" / "database").iterdir())
    for image in images[10:]:
        image.rename(tmp_path / image.name)
    arguments = "two_branch", grown, checkpoints["two_branch"], tmp_path, "--infer_batch_size=2", "--save_index=index"
    evaluate(*arguments)
    for image in images[10:]:
        (tmp_path / image.name).rename(image)
    assert evaluate(*arguments, "--append") == expected
    assert list(Index(tmp_path / "index").images.paths) == list(map(str, images))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--append"], ["--save_index"]),
        (["--trust_index"], ["--load_index"]),
        (["--allow_incomplete_index"], ["--load_index"]),
        (["--save_index=a", "--allow_incomplete_index"], ["--load_index"]),
        (["--save_index=/dev/null"], ["/dev/null is not a folder. An index is a folder"]),
        (["--save_index=a", "--load_index=b"], ["--save_index", "--load_index", "Give one"]),
        (["--load_index=missing"], ["No index", "missing"]),
        (["--descriptor_dtype=fp8"], ["fp8", "fp16"]),
        (["--load_index=missing", "--descriptor_dtype=fp16"], ["--save_index"]),
        (["--descriptor_dtype=fp16"], ["--save_index"]),
        (["--ivf", 4, 5], ["--ivf 4 5"]),
        (["--ivf", 17, 5], ["17 lists", "16"]),
    ],
)
def test_bad_flags(tmp_path, tiny_benchmark, checkpoints, flags, words):
    result = run_here("eval_rerank.py", *flags_for(tiny_benchmark, checkpoints["two_branch"], *flags), cwd=tmp_path)
    assert result.status == 2 and all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr


def test_more_lists_than_images_are_refused_before_anything_is_lost(tmp_path, tiny_benchmark, checkpoints):
    def refused(*more):
        flags = flags_for(tiny_benchmark, checkpoints["two_branch"], "--ivf", 17, 5, *more)
        result = run_here("eval_rerank.py", *flags, cwd=tmp_path)
        assert result.status == 2 and "17 lists" in result.stderr, result.stderr
        return result

    assert "Extracting" not in refused().stderr
    refused("--save_index=index")
    assert len(Index(tmp_path / "index")) == 16  # nothing is lost
    refused("--load_index=index")
    refused("--save_index=index", "--append")
