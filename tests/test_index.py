"""The index: what is written comes back, pieces are there or not, whatever is damaged is refused, a kill loses nothing."""
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, run_script
from test_eval import SCRIPTS, flags_for

from model import InputError, build_model
from utils.features import ExtractionSettings, Features
from utils.index import HEADER, JOURNAL, Index, IndexWriter, PhotoNames, fingerprint, make_header, pieces_of

SETTINGS = ExtractionSettings((56, 56))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("vit-tiny", "gem", hashing=True, rerank=True)


@pytest.fixture(scope="module")
def header(model):
    return make_header(model, "vit-tiny", "gem", Path("weights.pth"), SETTINGS, "fp32")


def make_piece(first, count):
    """Names, positions and features of made-up photos."""
    random = np.random.default_rng([first, count])
    photos = [f"/photos/é {i}\t.jpg" for i in range(first, first + count)]
    return photos, random.uniform(0, 1e6, (count, 2)), Features(random.integers(0, 256, (count, 64), dtype=np.uint8),
                                                                random.standard_normal((count, 512)).astype(np.float32))


def write(folder, header, sizes, append=False, first=0):
    """An index of pieces of these sizes."""
    with IndexWriter(folder, header, append) as writer:
        for size in sizes:
            writer.append(*make_piece(first, size))
            first += size
    return folder


def content(folder):
    """{file: bytes}."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0), ("fp16", 2e-3)])
def test_what_was_written_comes_back(tmp_path, model, dtype, tolerance):
    index = Index(write(tmp_path / "index", make_header(model, "vit-tiny", "gem", None, SETTINGS, dtype), [3, 1, 5]))
    parts = [make_piece(first, size) for first, size in ((0, 3), (3, 1), (4, 5))]
    assert len(index) == 9 and index.weights is None
    assert list(index.photos) == [photo for photos, _, _ in parts for photo in photos]
    assert index.photos[-1] == "/photos/é 8\t.jpg" and index.photos[-9] == index.photos[0]
    np.testing.assert_array_equal(index.utms, np.concatenate([utms for _, utms, _ in parts]))
    np.testing.assert_array_equal(index.codes, np.concatenate([features.codes for _, _, features in parts]))
    assert index.descriptors.dtype == {"fp32": np.float32, "fp16": np.float16}[dtype]
    np.testing.assert_allclose(index.descriptors, np.concatenate([features.descriptors for _, _, features in parts]), atol=tolerance, rtol=0)


@pytest.mark.parametrize("mode", [{}, {"hashing": True}])
def test_a_model_of_one_branch_keeps_that_branch_alone(tmp_path, mode):
    header = make_header(build_model("vit-tiny", "gem", **mode), "vit-tiny", "gem", None, SETTINGS, "fp32")
    photos, utms, features = make_piece(0, 4)
    kept = Features(features.codes, None) if mode else Features(None, features.descriptors)
    with IndexWriter(tmp_path / "index", header) as writer:
        writer.append(photos, utms, kept)
    index = Index(tmp_path / "index")
    for there, expected in zip(index.features(), kept, strict=True):
        assert (there is None) == (expected is None)
        if expected is not None:
            np.testing.assert_array_equal(there, expected)


def test_appending_gives_the_files_of_one_run(tmp_path, header):
    whole = write(tmp_path / "whole", header, [4, 4, 2])
    parts = write(tmp_path / "parts", header, [4])
    write(parts, header, [4], append=True, first=4)
    with IndexWriter(parts, header, append=True) as writer:
        assert writer.known == {photo for first in (0, 4) for photo in make_piece(first, 4)[0]}
    write(parts, header, [2], append=True, first=8)
    assert content(parts) == content(whole)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_piece_that_was_broken_off_is_not_there_and_is_overwritten(tmp_path, header, cut):
    """Killed while a piece was written: each file holds some bytes of it, the journal at most a part of its line."""
    whole = write(tmp_path / "whole", header, [4, 4])
    broken = write(tmp_path / "broken", header, [4])
    random = np.random.default_rng(cut)
    for name, data in content(whole).items():
        before = (broken / name).stat().st_size
        if name not in (HEADER, JOURNAL):
            (broken / name).write_bytes(data[:random.integers(before, len(data) + 1)])
    journal = (whole / JOURNAL).read_bytes()
    (broken / JOURNAL).write_bytes(journal[:len(journal) // 2 + cut])
    index = Index(broken)
    assert len(index) == 4 and len(index.photos) == 4
    write(broken, header, [4], append=True, first=4)
    assert content(broken) == content(whole)


@pytest.mark.parametrize("name", ["codes.bin", "descriptors.bin", "utms.bin", "photos.txt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("read", ["load", "append"])
def test_damage_is_refused_and_named(tmp_path, header, name, damage, read):
    folder = write(tmp_path / "index", header, [3, 3])
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) - 5] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-9])
    before = content(folder)
    with pytest.raises(InputError) as caught:
        Index(folder) if read == "load" else IndexWriter(folder, header, append=True)
    assert name in str(caught.value) and "anew" in str(caught.value)
    assert content(folder) == before


@pytest.mark.parametrize("name", ["codes.bin", "descriptors.bin", "utms.bin", "photos.txt"])
def test_a_trusted_index_is_refused_where_it_is_cut_off(tmp_path, header, name):
    path = write(tmp_path / "index", header, [3, 3]) / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=name):
        Index(tmp_path / "index", check=False)


@pytest.mark.parametrize(("name", "text", "words"), [
    (HEADER, "{", ["header.json", "damaged"]),
    (HEADER, '{"format": 7}', ["format 7", "format 1"]),
    (HEADER, "[]", ["header.json", "damaged"]),
    (HEADER, '{"format": 1}', ["header.json", "damaged"]),
    (JOURNAL, '{"photos": 3}\n', ["pieces.jsonl", "damaged"]),
    (JOURNAL, "no json\n", ["pieces.jsonl", "damaged"]),
    (JOURNAL, "", ["no photos"]),
])
def test_other_files_are_refused(tmp_path, header, name, text, words):
    folder = write(tmp_path / "index", header, [3])
    (folder / name).write_text(text)
    with pytest.raises(InputError) as caught:
        Index(folder)
    assert all(word in str(caught.value) for word in words), caught.value


def test_no_index_there(tmp_path):
    with pytest.raises(InputError, match="--save_index"):
        Index(tmp_path)


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path, header):
    (tmp_path / "notes.txt").write_text("mine")
    for append in (False, True):
        with pytest.raises(InputError, match="notes.txt and no header.json"):
            IndexWriter(tmp_path, header, append)
    with pytest.raises(InputError, match="notes.txt is a file"):
        IndexWriter(tmp_path / "notes.txt", header)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    before = content(write(tmp_path / "index", header, [2]))
    with pytest.raises(InputError, match="--append"):
        IndexWriter(tmp_path / "index", header)
    assert content(tmp_path / "index") == before


@pytest.mark.parametrize("read", ["load", "append"])
@pytest.mark.parametrize("left", [None, 0, 1])
def test_a_lost_or_cut_journal_is_no_broken_off_piece(tmp_path, header, monkeypatch, read, left):
    """Nothing may be cut off for it: the features took hours."""
    monkeypatch.setattr("utils.index.PIECE", 3)
    folder = write(tmp_path / "index", header, [3, 3, 3])
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    if left is None:
        (folder / JOURNAL).unlink()
    else:
        (folder / JOURNAL).write_bytes(b"".join(lines[:left]))
    before = content(folder)
    with pytest.raises(InputError, match="pieces.jsonl is missing or cut off"):
        Index(folder) if read == "load" else IndexWriter(folder, header, append=True)
    assert content(folder) == before


@pytest.mark.parametrize("change", [
    lambda header: header.pop("model"), lambda header: header.update(columns=5), lambda header: header["columns"].update(codes=["zz", 64]),
    lambda header: header["columns"].pop("codes"), lambda header: header["settings"].update(resize=[56, "56"]),
    lambda header: header["model"].update(hashing="yes"), lambda header: header.update(weights=3),
])
@pytest.mark.parametrize("read", ["load", "append"])
def test_a_header_that_is_none(tmp_path, header, change, read):
    folder = write(tmp_path / "index", header, [2])
    changed = json.loads((folder / HEADER).read_text())
    change(changed)
    (folder / HEADER).write_text(json.dumps(changed))
    with pytest.raises(InputError, match="header.json is damaged"):
        Index(folder) if read == "load" else IndexWriter(folder, header, append=True)


def test_a_header_with_another_number_is_noticed(tmp_path, header):
    folder = write(tmp_path / "index", header, [2])
    (folder / HEADER).write_text((folder / HEADER).read_text().replace("56", "70"))
    with pytest.raises(InputError, match="header.json is damaged"):
        Index(folder)


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, header, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="utms.bin: No space left"), IndexWriter(tmp_path / "index", header) as writer:
        writer.append(*make_piece(0, 3))
        monkeypatch.setattr(os, "fsync", refuse)
        writer.append(*make_piece(3, 3))
    assert len(Index(tmp_path / "index")) == 3


def test_a_name_that_is_no_utf8(tmp_path, header):
    photos, utms, features = make_piece(0, 2)
    name = os.fsdecode(b"/photos/\xff.jpg")
    with IndexWriter(tmp_path / "index", header) as writer:
        writer.append([photos[0], name], utms, features)
    assert list(Index(tmp_path / "index").photos) == [photos[0], name]


def try_to_append(folder, header, sender):
    try:
        with IndexWriter(folder, header, append=True):
            sender.send("")
    except InputError as error:
        sender.send(str(error))


def test_two_writers_keep_out_of_each_others_way(tmp_path, header):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def message_of_another_process():
        process = context.Process(target=try_to_append, args=(tmp_path / "index", header, sender))
        process.start()
        process.join()
        return receiver.recv()

    with IndexWriter(tmp_path / "index", header):
        assert "another process" in message_of_another_process()
    assert message_of_another_process() == ""


def test_a_name_with_a_line_break_is_refused(tmp_path, header):
    photos, utms, features = make_piece(0, 2)
    with IndexWriter(tmp_path / "index", header) as writer, pytest.raises(InputError, match="line break"):
        writer.append([photos[0], "a\nb.jpg"], utms, features)


@pytest.mark.parametrize("change", [{"settings": SETTINGS._replace(size=(70, 56))}, {"settings": SETTINGS._replace(antialias=False)}, {"model": 1}])
def test_another_models_or_resizes_index_is_refused(tmp_path, model, header, change):
    index = Index(write(tmp_path / "index", header, [3]))
    index.check_made_by(make_header(model, "vit-tiny", "gem", Path("elsewhere.pth"), SETTINGS._replace(batch_size=3), "fp16"))
    torch.manual_seed(1)
    other = build_model("vit-tiny", "gem", hashing=True, rerank=True) if "model" in change else model
    changed = make_header(other, "vit-tiny", "gem", None, change.get("settings", SETTINGS), "fp32")
    with pytest.raises(InputError, match="another model or resize"):
        index.check_made_by(changed)
    with pytest.raises(InputError, match="made otherwise"):
        IndexWriter(tmp_path / "index", changed, append=True)


def test_the_fingerprint_sees_every_value():
    model = build_model("vit-tiny", "gem")
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        model.linear2.bias[-1] += 1e-7
    assert fingerprint(model) != before


def test_pieces():
    assert [list(pieces_of(count)) for count in (0, 1, 1030)] == [[], [range(1)], [range(1024), range(1024, 1030)]]


def test_names_around_the_blocks_in_which_they_are_read(tmp_path):
    names = ["x" * (1 << 20), "", "y", "z" * ((1 << 20) - 3), "end"]
    (tmp_path / "photos.txt").write_text("".join(f"{name}\n" for name in names))
    assert list(PhotoNames(tmp_path / "photos.txt", (tmp_path / "photos.txt").stat().st_size, 5)) == names


# ---- By the scripts

def predictions(cwd):
    """predictions.csv of the last run in this folder."""
    return max(cwd.glob("logs/eval/*/predictions.csv"), key=os.path.getmtime).read_text()


def evaluate(mode, datasets, checkpoint, cwd, *more):
    result = run_script(SCRIPTS[mode], *flags_for(datasets, checkpoint, *more), cwd=cwd)
    assert result.status == 0, result.stderr
    return predictions(cwd)


@pytest.mark.parametrize("mode", SCRIPTS)
def test_saved_and_loaded_it_gives_the_plain_runs_predictions(tmp_path, tiny_benchmark, checkpoints, mode):
    expected = evaluate(mode, tiny_benchmark, checkpoints[mode], tmp_path)
    assert evaluate(mode, tiny_benchmark, checkpoints[mode], tmp_path, "--save_index=index") == expected
    bare = tmp_path / "bare"  # the queries alone: the database's photos are not touched
    shutil.copytree(tiny_benchmark / "tiny" / "images" / "test" / "queries", bare / "tiny" / "images" / "test" / "queries")
    loaded = evaluate(mode, bare, checkpoints[mode], tmp_path, "--load_index=index")
    assert loaded.replace(f"{tiny_benchmark}/tiny/images/test/", "") == expected
    assert not list(tmp_path.glob("logs/eval/*/.index*"))


def test_a_part_then_the_rest(tmp_path, tiny_benchmark, checkpoints):
    """A database that has grown since: the index gets what it lacks. In batches that are the same either way, to the last bit."""
    whole = evaluate("two_branch", tiny_benchmark, checkpoints["two_branch"], tmp_path, "--infer_batch_size=2")
    grown = tmp_path / "grown"
    shutil.copytree(tiny_benchmark, grown)
    photos = sorted((grown / "tiny" / "images" / "test" / "database").iterdir())
    for photo in photos[10:]:
        photo.rename(tmp_path / photo.name)
    evaluate("two_branch", grown, checkpoints["two_branch"], tmp_path, "--infer_batch_size=2", "--save_index=index")
    for photo in photos[10:]:
        (tmp_path / photo.name).rename(photo)
    assert evaluate("two_branch", grown, checkpoints["two_branch"], tmp_path, "--infer_batch_size=2", "--save_index=index", "--append") == whole
    assert list(Index(tmp_path / "index").photos) == list(map(str, photos))


SLOWLY = """
import runpy, sys, time, utils.index as index
index.PIECE = 2
append = index.IndexWriter.append
index.IndexWriter.append = lambda *arguments: (time.sleep(0.1), append(*arguments))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""  # pieces of 2 photos, so that there are several, each after a while


def start_slowly(datasets, checkpoint, cwd, *more):
    """A process of eval_rerank.py that writes its index slowly."""
    flags = map(str, flags_for(datasets, checkpoint, "--infer_batch_size=1", *more))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SLOWLY, str(ROOT / "eval_rerank.py"), *flags], cwd=cwd, env=env,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_pieces(process, cwd, pattern, count):
    """The journal that the pattern finds, once it has so many lines."""
    while True:
        for journal in cwd.glob(pattern):
            if journal.read_bytes().count(b"\n") >= count:
                return journal
        assert process.poll() is None
        time.sleep(0.002)


def test_killed_while_it_appends_and_gone_on_with(tmp_path, tiny_benchmark, checkpoints):
    """kill -9 after some pieces; --append then gives the files of one run."""
    arguments = tiny_benchmark, checkpoints["two_branch"], tmp_path
    assert start_slowly(*arguments, "--save_index=whole").wait() == 0
    process = start_slowly(*arguments, "--save_index=index", "--append")
    journal = wait_for_pieces(process, tmp_path, f"index/{JOURNAL}", 2)
    process.kill()
    process.wait()
    there = journal.read_bytes().count(b"\n")
    assert 2 <= there < 8, "killed too late to test anything"
    assert len(Index(tmp_path / "index")) == 2 * there
    assert start_slowly(*arguments, "--save_index=index", "--append").wait() == 0
    assert content(tmp_path / "index") == content(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_ends_an_evaluation_and_leaves_no_index_behind(tmp_path, tiny_benchmark, checkpoints, workers):
    process = start_slowly(tiny_benchmark, checkpoints["two_branch"], tmp_path, f"--num_workers={workers}")
    wait_for_pieces(process, tmp_path, f"logs/eval/*/.index_*/{JOURNAL}", 1)
    process.terminate()
    assert process.wait(60) == 143
    assert [path.name for path in tmp_path.glob("logs/eval/*/*")] == ["log.txt"]


@pytest.mark.parametrize(("flags", "words"), [
    (["--append"], ["--save_index"]),
    (["--trust_index"], ["--load_index"]),
    (["--save_index=a", "--load_index=b"], ["not allowed"]),
    (["--load_index=missing"], ["no index", "missing"]),
    (["--descriptor_dtype=fp8"], ["fp8", "fp16"]),
    (["--load_index=missing", "--descriptor_dtype=fp16"], ["kept already"]),
    (["--ivf", 4, 5], ["--ivf 4 5"]),
    (["--ivf", 17, 5], ["17 lists", "16"]),
])
def test_bad_flags(tmp_path, tiny_benchmark, checkpoints, flags, words):
    result = run_script("eval_rerank.py", *flags_for(tiny_benchmark, checkpoints["two_branch"], *flags), cwd=tmp_path)
    assert result.status == 2 and all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr


def test_more_lists_than_photos_are_refused_before_anything_is_extracted(tmp_path, tiny_benchmark, checkpoints):
    def refused(*flags):
        result = run_script("eval_rerank.py", *flags_for(tiny_benchmark, checkpoints["two_branch"], "--ivf", 17, 5, *flags), cwd=tmp_path)
        assert result.status == 2 and "17 lists" in result.stderr and "Extracting" not in result.stderr, result.stderr

    refused("--save_index=index")
    assert not (tmp_path / "index" / JOURNAL).read_bytes()
    evaluate("two_branch", tiny_benchmark, checkpoints["two_branch"], tmp_path, "--save_index=index", "--append")
    refused("--load_index=index")
    refused("--save_index=index", "--append")


def test_an_inverted_file_that_probes_every_list_is_exact(tmp_path, tiny_benchmark, checkpoints):
    exact = evaluate("two_branch", tiny_benchmark, checkpoints["two_branch"], tmp_path, "--rerank_num=16")
    assert evaluate("two_branch", tiny_benchmark, checkpoints["two_branch"], tmp_path, "--rerank_num=16", "--ivf", 2, 2) == exact


def test_half_precision_descriptors_give_all_but_the_same_distances(tmp_path, tiny_benchmark, checkpoints):
    expected, found = (evaluate("two_branch", tiny_benchmark, checkpoints["two_branch"], tmp_path, f"--descriptor_dtype={dtype}", "--rerank_num=5")
                       for dtype in ("fp32", "fp16"))
    first, second = ([line.split(",") for line in text.splitlines()[1:]] for text in (expected, found))
    assert first != second
    assert [float(row[3]) for row in second] == pytest.approx([float(row[3]) for row in first], abs=2e-3)


def test_the_header_is_plain_json(tmp_path, header):
    folder = write(tmp_path / "index", header, [1])
    assert json.loads((folder / HEADER).read_text())["model"]["backbone"] == "vit-tiny"
