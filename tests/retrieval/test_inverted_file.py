"""The inverted file that an index keeps: read back as it was built, not used for other codes, no reason to fail."""

import hashlib
import json

import numpy as np
import pytest
from helpers.evaluations import SCRIPTS, evaluate, flags_for
from helpers.processes import run_script

from utils.retrieval.config import IVFConfig
from utils.retrieval.index.inverted_file import InvertedFile, open_inverted_file

CONFIG = IVFConfig(nlist=8, nprobe=2)


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(0, 256, (400, 8), dtype=np.uint8)


@pytest.fixture
def builds(monkeypatch):
    """A list that gets an entry whenever lists are computed."""
    calls, sort = [], InvertedFile._sort
    monkeypatch.setattr(InvertedFile, "_sort", lambda self, codes: calls.append(1) or sort(self, codes))
    return calls


@pytest.fixture
def kept(tmp_path, codes, builds):
    """The file of an inverted file of the codes."""
    open_inverted_file(codes, CONFIG, tmp_path)
    builds.clear()
    return tmp_path / "ivf_8.bin"


def results(inverted_file, codes):
    distances, indices, _ = inverted_file.search(codes[:50] ^ 1, 20)
    return distances.tolist(), indices.tolist()


def test_what_was_kept_gives_the_results_of_what_was_built(codes, kept, builds, caplog):
    expected = results(InvertedFile(codes, CONFIG), codes)
    builds.clear()
    assert results(open_inverted_file(codes, CONFIG, kept.parent), codes) == expected
    wider = IVFConfig(nlist=8, nprobe=8)  # the lists are the same
    assert results(open_inverted_file(codes, wider, kept.parent), codes) == results(InvertedFile(codes, wider), codes)
    assert len(builds) == 1 and not caplog.messages
    assert [path.name for path in kept.parent.iterdir()] == ["ivf_8.bin"]


def test_each_code_is_in_the_list_of_its_nearest_centre(codes, kept):
    header, data = kept.read_bytes().split(b"\n", 1)
    centres, numbers = np.frombuffer(data[:64], np.uint8).reshape(8, 8), np.frombuffer(data[64:], "<i4")
    distances = np.array([[np.unpackbits(code ^ centre).sum() for centre in centres] for code in codes])
    assert len(numbers) == 400
    assert (distances[np.arange(400), numbers] == distances.min(axis=1)).all()
    assert json.loads(header) == {
        "format": 1,
        "codes_sha256": hashlib.sha256(codes).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


@pytest.mark.parametrize("change", ["append", "replace", "format"])
def test_one_of_other_codes_is_built_again(codes, kept, builds, caplog, change):
    if change == "append":
        codes = np.concatenate([codes, codes[:1]])
    elif change == "replace":
        codes = codes ^ np.eye(400, 8, dtype=np.uint8)  # one bit
    else:
        kept.write_bytes(kept.read_bytes().replace(b'"format": 1', b'"format": 2'))
    expected = results(InvertedFile(codes, CONFIG), codes)
    builds.clear()
    assert results(open_inverted_file(codes, CONFIG, kept.parent), codes) == expected
    assert len(builds) == 1 and "belongs to other codes" in caplog.messages[0]
    open_inverted_file(codes, CONFIG, kept.parent)
    assert len(builds) == 1 == len(caplog.messages)  # the new one was kept


def forge_numbers(value):
    """A function that changes the number of the last code's list, and the checksum with it."""

    def forge(data):
        header, rest = data.split(b"\n", 1)
        rest = rest[:-4] + np.array([value], "<i4").tobytes()
        fields = json.loads(header) | {"sha256": hashlib.sha256(rest).hexdigest()}
        return json.dumps(fields).encode() + b"\n" + rest

    return forge


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda data: data[:-4], lambda data: data + b"x", lambda data: b"", lambda data: b"null\n"),
        *(lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data.replace(b"{", b"[", 1)),
        forge_numbers(8),
        forge_numbers(-1),
    ],
)
def test_a_damaged_one_is_built_again(codes, kept, builds, caplog, damage):
    before = kept.read_bytes()
    kept.write_bytes(damage(before))
    assert results(open_inverted_file(codes, CONFIG, kept.parent), codes) == results(InvertedFile(codes, CONFIG), codes)
    assert len(builds) == 2 and "cannot be used" in caplog.messages[0] and "Building it again" in caplog.messages[0]
    assert kept.read_bytes() == before


def test_where_nothing_can_be_written_the_search_goes_on(codes, tmp_path, monkeypatch, caplog):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("model.saving.open", refuse, raising=False)
    found = open_inverted_file(codes, CONFIG, tmp_path)
    assert results(found, codes) == results(InvertedFile(codes, CONFIG), codes)
    assert caplog.messages == [
        f"Cannot write {tmp_path}/ivf_8.bin: Permission denied. The next run builds the inverted file again."
    ]
    assert not list(tmp_path.iterdir())


def test_without_an_index_none_is_kept(codes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_inverted_file(codes, CONFIG, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hashing", "two_branch"])
def test_the_scripts_keep_it_and_use_it(tmp_path, tiny_benchmark, checkpoints, mode):
    arguments = mode, tiny_benchmark, checkpoints[mode], tmp_path
    flags = ["--recall_values", 1, 2, "--ivf", 2, 1, *["--rerank_num=2"] * (mode == "two_branch")]
    saved = evaluate(*arguments, *flags, "--save_index=index")
    path = tmp_path / "index" / "ivf_2.bin"
    before = path.stat().st_mtime_ns
    assert evaluate(*arguments, *flags, "--load_index=index") == saved
    assert path.stat().st_mtime_ns == before
    # A stale one, as after --append.
    path.write_bytes(path.read_bytes().replace(b'"codes_sha256": "', b'"codes_sha256": "0'))
    result = run_script(SCRIPTS[mode], *flags_for(*arguments[1:3], *flags, "--load_index=index"), cwd=tmp_path)
    assert result.status == 0 and "belongs to other codes" in result.stdout + result.stderr
