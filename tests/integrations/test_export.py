"""export.py: what it writes is read back as the other programs read it, complete or not at all."""

import contextlib
import csv
import json
import os
import shutil
import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from helpers.evaluations import SCRIPTS, flags_for
from helpers.models import MODES, build
from helpers.processes import run_here, run_script

from datasets.image_set import ImageSet
from model import Description, InputError, PlaceRecognizer
from model.config import LoopConfig
from model.files import remove_leftovers
from model.weights import load_any_model
from utils.cli.export import parse_export
from utils.integrations.hloc import export_hloc
from utils.integrations.msls import export_msls
from utils.integrations.numpy_files import export_npy
from utils.integrations.pairs import Pairs, export_pairs, nearest_others, predicted_pairs, sequence_loops
from utils.integrations.safetensors_file import export_safetensors
from utils.integrations.shared import common_folder, relative_name
from utils.retrieval.config import ExtractionConfig, IndexConfig
from utils.retrieval.features import Features
from utils.retrieval.index import Index, IndexWriter, metadata_of
from utils.retrieval.report.predictions import CSV_COLUMNS
from utils.runtime.atomic_files import atomic_folder

pytestmark = pytest.mark.slow

ROOT = "/data/images"
ODD_NAMES = ["é/1 a.jpg", "b\t\x1b[31m.jpg", "#c.jpg", "日本/d.jpg"]
KEYS = [f"k-{i:_>19}Z" for i in range(40)]


def descriptors_of(count, seed=0):
    """Made-up descriptors [N, 512] of length 1, float32."""
    descriptors = np.random.default_rng(seed).standard_normal((count, 512)).astype(np.float32)
    return descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)


@lru_cache
def metadata_in(mode):
    """The metadata of an index of such a model."""
    return metadata_of(build("vit-tiny", **MODES[mode]), ExtractionConfig(resize=(56, 56)))


@pytest.fixture
def make_index(tmp_path):
    """make_index(names, mode, codes=None, dtype="fp32"): an index of images with these names and made-up features."""

    def make(names, mode="two_branch", codes=None, dtype="fp32"):
        config = IndexConfig(folder=tmp_path / "index", descriptor_dtype=dtype)
        if codes is None:
            codes = np.random.default_rng(1).integers(0, 256, (len(names), 64), dtype=np.uint8)
        images = ImageSet.without_positions([os.path.join(ROOT, name) for name in names])
        with IndexWriter(config, replace(metadata_in(mode), descriptor_dtype=dtype)) as writer:
            has_codes, has_descriptors = mode != "float", mode != "hashing"
            writer.append(
                Features(images, codes if has_codes else None, descriptors_of(len(names)) if has_descriptors else None)
            )
            writer.features()
        return Index(tmp_path / "index")

    return make


@pytest.fixture
def make_run(tmp_path):
    """make_run(rows): the folder of an evaluation with these queries, ranks and database images."""

    def make(rows, columns=CSV_COLUMNS):
        run = tmp_path / "run"
        run.mkdir()
        with open(run / "predictions.csv", "w", newline="") as file:
            csv.writer(file).writerows([columns, *((*row, 0.5, 1, "l2") for row in rows)])
        (run / "results.json").write_text(json.dumps({"folder": ROOT, "arguments": {}}))
        return run

    return make


def file_name(key):
    """The name of an image as VPR-datasets-downloader writes it, with this Mapillary key."""
    return f"@1@2@33@U@3@4@{key}@@0@@@@2020@note@.jpg"


def hloc_names(path):
    """As hloc/utils/io.py lists the images of a file."""
    h5py = pytest.importorskip("h5py")
    names = []
    with h5py.File(str(path), "r", libver="latest") as file:

        def visit(_, entry):
            if isinstance(entry, h5py.Dataset):
                names.append(entry.parent.name.strip("/"))

        file.visititems(visit)
    return list(set(names))


def hloc_descriptors(path, names):
    """As hloc/pairs_from_retrieval.py reads descriptors."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(str(path), "r", libver="latest") as file:
        return np.stack([file[name]["global_descriptor"].__array__() for name in names], 0)


def hloc_pairs(path):
    """As hloc/utils/parsers.py reads pairs."""
    retrieval = {}
    with open(path, encoding="utf-8") as file:
        for line in file.read().rstrip("\n").split("\n"):
            query, image = line.split()
            retrieval.setdefault(query, []).append(image)
    return retrieval


def colmap_pairs(path):
    """As COLMAP's documentation describes a list of pairs: two names with a space between; # begins a comment."""
    lines = path.read_bytes().decode().split("\n")
    return [tuple(line.strip().split(" ")) for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize(("dtype", "block"), [("fp16", 3), ("fp32", 1024)])
def test_hloc_reads_the_descriptors(make_index, tmp_path, monkeypatch, dtype, block):
    pytest.importorskip("h5py")
    monkeypatch.setattr("utils.integrations.hloc.CHUNK_SIZE", block)
    names = [*ODD_NAMES, *(f"database/{i}.jpg" for i in range(6))]
    export_hloc(make_index(names), tmp_path / "features.h5", ROOT, dtype=dtype)
    assert sorted(hloc_names(tmp_path / "features.h5")) == sorted(names)
    actual = hloc_descriptors(tmp_path / "features.h5", names)
    expected = descriptors_of(10).astype({"fp16": np.float16, "fp32": np.float32}[dtype])
    assert actual.dtype == expected.dtype and actual.shape == (10, 512)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("mode", "stored", "dtype"),
    [
        ("two_branch", "fp32", None),
        ("float", "fp16", "fp32"),
        ("two_branch", "int8", None),
        ("float", "int8", "fp16"),
        ("hashing", "fp32", None),
    ],
)
def test_numpy_reads_what_the_index_has(make_index, tmp_path, monkeypatch, mode, dtype, stored):
    monkeypatch.setattr("utils.integrations.numpy_files.CHUNK_SIZE", 3)
    index = make_index(ODD_NAMES * (mode == "float") + [f"{i}.jpg" for i in range(7)], mode, dtype=stored)
    export_npy(index, tmp_path / "npy", ROOT, dtype=dtype)
    _, codes, descriptors, _ = index.features()
    content = {path.name for path in (tmp_path / "npy").iterdir()}
    expected = {"database_codes.npy": codes, "database_descriptors.npy": descriptors}
    assert content == {"database_paths.txt"} | {name for name, array in expected.items() if array is not None}
    for name in content - {"database_paths.txt"}:
        array = np.load(tmp_path / "npy" / name, allow_pickle=False)
        kinds = {"fp16": np.float16, "fp32": np.float32, "int8": np.float32}
        kind = np.uint8 if name == "database_codes.npy" else kinds[dtype or stored]
        assert array.dtype == kind and array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected[name][:].astype(kind))
    lines = (tmp_path / "npy" / "database_paths.txt").read_bytes().decode().split("\n")
    assert lines == [*(relative_name(path, ROOT) for path in index.images.paths), ""]


def naive_neighbours(index, count, rerank_num):
    """For each image, the others by distance: a loop over all."""
    _, codes, descriptors, _ = index.features()
    neighbours = []
    for i in range(len(index)):
        others = [j for j in range(len(index)) if j != i]
        l2 = {j: np.linalg.norm(descriptors[:][i] - descriptors[:][j]) for j in others if descriptors is not None}
        if codes is not None:
            hamming = {j: np.unpackbits(codes[i] ^ codes[j]).sum() for j in others}
            others.sort(key=hamming.get)
            if descriptors is not None:
                others = sorted(others[:rerank_num], key=l2.get) + others[rerank_num:]
        else:
            others.sort(key=l2.get)
        neighbours.append(others[:count])
    return neighbours


@pytest.mark.parametrize(
    ("mode", "rerank_num"), [("float", 9), ("hashing", 9), ("two_branch", 2), ("two_branch", 9), ("two_branch", 100)]
)
def test_pairs_of_an_index_are_each_images_nearest_others(make_index, tmp_path, monkeypatch, mode, rerank_num):
    monkeypatch.setattr("utils.integrations.pairs.QUERY_BLOCK", 5)
    names = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(12)]
    codes = np.repeat(np.random.default_rng(0).integers(0, 256, (3, 64), dtype=np.uint8), 4, axis=0)  # many are equal
    index = make_index(names, mode, codes)
    export_pairs(nearest_others(index, 5, rerank_num=rerank_num), tmp_path / "pairs.txt", ROOT)
    expected = [[names[j] for j in row] for row in naive_neighbours(index, 5, rerank_num)]
    assert hloc_pairs(tmp_path / "pairs.txt") == dict(zip(names, expected, strict=True))
    assert colmap_pairs(tmp_path / "pairs.txt") == [
        (name, other) for name, row in zip(names, expected, strict=True) for other in row
    ]


def test_an_image_among_equal_ones_is_not_its_own_neighbour(make_index):
    """The image itself is not even among the first results: all have distance 0, and smaller indices come first."""
    codes = np.zeros((9, 64), np.uint8)
    codes[8] = 255  # a database with one code for all is refused
    matches = list(nearest_others(make_index([f"{i}.jpg" for i in range(9)], "hashing", codes), 2, rerank_num=0))
    assert [[int(path[len(ROOT) + 1]) for path in images] for _, images in matches] == [[1, 2], [0, 2]] + [[0, 1]] * 7


@pytest.mark.parametrize(("mode", "dtype", "max_distance"), [
    ("float", "fp32", 1.35), ("float", "int8", 1.35), ("hashing", "fp32", 230), ("two_branch", "fp16", 1.37)
])  # fmt: skip
def test_loops_of_an_index_are_those_that_a_recogniser_finds_in_the_order_of_names(
    make_index, tmp_path, mode, dtype, max_distance
):
    """The index has its images in the order of their names as texts: 10 before 9."""
    names = sorted(f"drive/{i}.jpg" for i in range(60))
    index = make_index(names, mode, dtype=dtype)
    images, codes, descriptors, _ = index.features()
    sequence = sorted(range(60), key=lambda i: int(names[i][6:-4]))
    description = Description(
        None if codes is None else codes[sequence],
        None if descriptors is None else descriptors[:][sequence].astype(np.float32),
    )
    recognizer = PlaceRecognizer(build("vit-tiny", **MODES[mode]).eval(), resize=(56, 56), rerank_num=20)
    recognizer.add(description)
    settings = {"max_distance": max_distance, "min_gap": 10, "suppress": 4, "k": 3}
    expected = [(f"drive/{loop.id}.jpg", f"drive/{loop.earlier}.jpg") for loop in recognizer.find_loops(**settings)]
    export_pairs(sequence_loops(index, LoopConfig(**settings), rerank_num=20), tmp_path / "pairs.txt", ROOT)
    assert 5 < len(expected) < 150 and colmap_pairs(tmp_path / "pairs.txt") == expected


def test_a_sequence_that_is_too_short_for_a_loop_is_refused(make_index):
    with pytest.raises(InputError, match="holds 9 images.*--min_gap"):
        sequence_loops(make_index([f"{i}.jpg" for i in range(9)]), LoopConfig(max_distance=1, min_gap=9), rerank_num=1)


def test_pairs_of_a_run_are_its_first_predictions(make_run, tmp_path):
    rows = [("q/1.jpg", 1, "d/b.jpg"), ("q/1.jpg", 2, "d/a.jpg"), ("q/1.jpg", 3, "d/c.jpg")]
    rows += [("q/2.jpg", 1, "/data/images/d/c.jpg"), ("q/2.jpg", 2, "d/b.jpg"), ("q/2.jpg", 3, "d/a.jpg")]
    matches = predicted_pairs(make_run(rows), 2)
    export_pairs(matches, tmp_path / "pairs.txt", "/data")
    expected = {"images/q/1.jpg": ["images/d/b.jpg", "images/d/a.jpg"]}
    expected["images/q/2.jpg"] = ["images/d/c.jpg", "images/d/b.jpg"]
    assert hloc_pairs(tmp_path / "pairs.txt") == expected


def test_the_msls_evaluation_reads_the_predictions(make_run, tmp_path):
    """It reads a table of words with np.loadtxt; the first word is the query."""
    rows = [
        (f"q/{file_name(KEYS[query])}", rank + 1, f"d/{file_name(KEYS[20 + (query + rank) % 20])}")
        for query in range(15)
        for rank in range(20)
    ]
    export_msls(predicted_pairs(make_run(rows), 20), tmp_path / "predictions.txt")
    table = np.loadtxt(tmp_path / "predictions.txt", dtype=str, ndmin=2)
    assert table.shape == (15, 21)
    assert table.tolist() == [[KEYS[q], *(KEYS[20 + (q + rank) % 20] for rank in range(20))] for q in range(15)]


@pytest.mark.parametrize(
    ("paths", "folder"),
    [
        (["/a/b/1.jpg", "/a/b/2.jpg"], "/a/b"),
        (["/a/b-c/1.jpg", "/a/b/1.jpg", "/a/b0/1.jpg"], "/a"),
        (["/a/b/1.jpg"], "/a/b"),
        (["/a/1.jpg", "/b/1.jpg"], "/"),
    ],
)
def test_names_are_relative_to_the_deepest_folder_of_all_images(paths, folder):
    assert str(common_folder(paths)) == folder
    for path in paths:
        assert os.path.normpath(os.path.join(folder, relative_name(path, folder))) == path
        assert not relative_name(path, folder).startswith("/")


def test_images_outside_of_the_root_are_refused():
    for path, root in (("/a/b/1.jpg", "/a/c"), ("/a/bc/1.jpg", "/a/b")):
        with pytest.raises(InputError, match="is not below.*--image_root"):
            relative_name(path, root)
    with pytest.raises(InputError, match="no common folder.*--image_root"):
        common_folder(["/a/1.jpg", "b/1.jpg"])


@pytest.mark.parametrize(
    "name", ["a b.jpg", "a\tb.jpg", "a\u00a0b.jpg", "a\x1cb.jpg", " a.jpg", "#a.jpg", "a\udcff.jpg"]
)
@pytest.mark.parametrize("is_query", [True, False])
def test_names_that_a_list_of_pairs_cannot_hold_are_refused(tmp_path, name, is_query):
    pair = [f"{ROOT}/fine.jpg", f"{ROOT}/{name}"]
    query, image = reversed(pair) if is_query else pair
    with pytest.raises(InputError, match="UTF-8" if "\udcff" in name else "cannot hold"):
        export_pairs([Pairs(query, [image])], tmp_path / "pairs.txt", ROOT)
    assert not list(tmp_path.iterdir())


def test_names_that_hdf5_cannot_hold_are_refused(make_index, tmp_path):
    pytest.importorskip("h5py")
    index = make_index(["a.jpg", "b\udcff.jpg"])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"b\\udcff.jpg' is not UTF-8"):
        export_hloc(index, tmp_path / "features.h5", ROOT, dtype="fp16")
    assert sorted(tmp_path.iterdir()) == before


def test_an_index_that_holds_an_image_twice_is_refused(make_index, tmp_path):
    pytest.importorskip("h5py")
    with pytest.raises(InputError, match="holds a.jpg twice"):
        export_hloc(make_index(["a.jpg", "a.jpg"]), tmp_path / "features.h5", ROOT, dtype="fp16")


def test_an_index_without_descriptors_is_refused_where_they_are_wanted(make_index, tmp_path):
    index = make_index(["a.jpg"], "hashing")
    with pytest.raises(InputError, match="codes only.*without --descriptor_dtype"):
        export_npy(index, tmp_path / "npy", ROOT, dtype="fp16")
    pytest.importorskip("h5py")
    with pytest.raises(InputError, match="codes only.*export.py npy"):
        export_hloc(index, tmp_path / "features.h5", ROOT, dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_without_h5py_the_message_says_what_to_install(make_index, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="pip install -r requirements-export.txt"):
        export_hloc(make_index(["a.jpg"]), tmp_path / "features.h5", ROOT, dtype="fp16")


def test_more_neighbours_than_other_images_are_refused(make_index):
    with pytest.raises(InputError, match="holds 3 images, so that each has 2 others, but --num_matched is 3"):
        next(nearest_others(make_index(["a.jpg", "b.jpg", "c.jpg"]), 3, rerank_num=100))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("q", 1, "a"), ("q", 3, "b")], "does not have the same number of rows for each query"),
        ([("q", 1, "a"), ("q", 1, "b")], "line 3: expected the predictions"),
        ([("q", 1, "a"), ("q", 2)], "line 3: expected the predictions"),
        ([("", 1, "a"), ("", 2, "b")], "line 2: expected the predictions"),
        ([("q", 1, "a"), ("q", 2, "b"), ("r", 1, "b")], "does not have the same number of rows for each query"),
        ([("q", 1, "a"), ("r", 1, "b")], "has 1 predictions .* --num_matched is 2.*--recall_values 2"),
    ],
)
def test_damaged_and_short_predictions_are_refused(make_run, rows, words):
    with pytest.raises(InputError, match=words):
        predicted_pairs(make_run(rows), 2)


def test_other_tables_are_refused(make_run):
    with pytest.raises(InputError, match="lacks the columns rank, .* It has: query, image"):
        predicted_pairs(make_run([], columns=("query", "image")), 2)


@pytest.mark.parametrize("results", ["{", "{}", "[]", '{"folder": 3, "arguments": {}}', '{"folder": "/a"}'])
def test_damaged_results_are_refused(make_run, results):
    run = make_run([("q", 1, "a")])
    (run / "results.json").write_text(results)
    with pytest.raises(InputError, match="results.json.*Evaluate again"):
        predicted_pairs(run, 1)


def test_a_folder_without_predictions_is_refused(make_run, tmp_path):
    with pytest.raises(InputError, match="No predictions in .*logs/<save_dir>/<time>"):
        predicted_pairs(tmp_path, 1)
    run = make_run([("q", 1, "a")])
    with pytest.raises(InputError, match="No predictions in .*Choose one of its folders: run"):
        predicted_pairs(tmp_path, 1)
    (run / "results.json").unlink()
    with pytest.raises(InputError, match="Cannot read .*results.json"):
        predicted_pairs(run, 1)


def test_images_without_a_key_or_with_the_same_have_no_msls_predictions(tmp_path):
    good, other = (f"{ROOT}/{folder}/{file_name(KEYS[0])}" for folder in "ab")
    with pytest.raises(InputError, match="No Mapillary key in the file name /data/images/a.jpg"):
        export_msls([Pairs(good, [f"{ROOT}/a.jpg"])], tmp_path / "predictions.txt")
    with pytest.raises(InputError, match="No Mapillary key"):
        export_msls([Pairs(f"{ROOT}/{file_name('k#1')}", [good])], tmp_path / "predictions.txt")
    with pytest.raises(InputError, match=f"have the same key, {KEYS[0]}"):
        export_msls([Pairs(good, [other])], tmp_path / "predictions.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "the following arguments are required: command"),
        (["csv"], "invalid choice: 'csv'"),
        (["hloc", "--output=new"], "required: --index"),
        (["hloc", "--index=i"], "required: --output"),
        (["pairs", "--output=new"], "Give an index with --index DIR, or an evaluation with --run DIR."),
        (["pairs", "--index=i", "--run=r", "--output=new"], "Give an index with --index DIR, or"),
        (["hloc", "--index=i", "--output=new", "--num_matched=3"], "unrecognized arguments: --num_matched=3"),
        (["pairs", "--run=r", "--output=new", "--rerank_num=3"], "--rerank_num does not apply to --run"),
        (["pairs", "--run=r", "--output=new", "--max_distance=1"], "--max_distance finds the loops of an --index"),
        (["pairs", "--index=i", "--output=new", "--min_gap=9"], "--min_gap applies to the loops of a sequence."),
        (["pairs", "--index=i", "--output=new", "--max_distance=nan"], "'nan' is not a number of 0 or more"),
        (["pairs", "--run=r", "--output=new", "--trust_index"], "--trust_index does not apply to --run"),
        (["npy", "--index=milvus://h:1/a", "--output=new"], "milvus://h:1/a is not a folder."),
        (["npy", "--index=i", "--output=."], ". exists already"),
        (["npy", "--index=i", "--output=nowhere/new"], "No folder nowhere for the file new. Create it."),
    ],
)
def test_flags_without_a_meaning_are_refused(monkeypatch, tmp_path, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export.py", *flags])
    with pytest.raises(SystemExit) as caught:
        parse_export(None)
    assert caught.value.code == 2 and words in " ".join(capsys.readouterr().err.split())


@contextlib.contextmanager
def full_disk(size):
    """Files that are written in the block have at most `size` bytes, as if the disk were full after them."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def many_matches():
    return [Pairs(f"{ROOT}/{file_name(key)}", [f"{ROOT}/{file_name(KEYS[0])}"] * 20) for key in KEYS[1:]]


EXPORTS = {
    "hloc": lambda index, output: export_hloc(index, output, ROOT, dtype="fp16"),
    "npy": lambda index, output: export_npy(index, output, ROOT, dtype=None),
    "pairs": lambda index, output: export_pairs(many_matches(), output, ROOT),
    "msls": lambda index, output: export_msls(many_matches(), output),
}


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("size", [0, 10_000])
def test_a_full_disk_leaves_nothing(make_index, tmp_path, kind, size):
    if kind == "hloc":
        pytest.importorskip("h5py")
    index = make_index([f"{i}.jpg" for i in range(40)])
    before = sorted(tmp_path.iterdir())
    with full_disk(size), pytest.raises(InputError, match=f"Cannot write {tmp_path}/output: File too large"):
        EXPORTS[kind](index, tmp_path / "output")
    assert sorted(tmp_path.iterdir()) == before
    EXPORTS[kind](index, tmp_path / "output")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "output"])


@pytest.mark.parametrize("path", ["/data/../etc/a.jpg", "/data/./a.jpg", "/data/sub/.."])
def test_a_path_that_leaves_the_folder_of_all_images_is_refused(path):
    with pytest.raises(InputError, match="contains .*, which no index of ours does"):
        relative_name(path, "/data")
    assert relative_name("/data/..a/b...jpg", "/data") == "..a/b...jpg"


def test_the_folder_of_a_killed_export_is_removed_with_other_leftovers(tmp_path):
    with pytest.raises(InputError, match="Cannot write"), atomic_folder(tmp_path / "npy") as temporary:
        (temporary / "database_codes.npy").touch()
        copy = shutil.copytree(temporary, tmp_path / ".npy.99999.tmp")
        shutil.rmtree(temporary)  # as if another process did: moving it fails
    assert list(tmp_path.iterdir()) == [copy]
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def evaluated(tiny_benchmark, checkpoints, tmp_path_factory):
    """The folder in which eval_rerank.py left an index, `index`, and a run, `logs/eval/<time>`."""
    folder = tmp_path_factory.mktemp("evaluated")
    flags = flags_for(tiny_benchmark, checkpoints["two_branch"], f"--save_index={folder / 'index'}")
    result = run_script(SCRIPTS["two_branch"], *flags, cwd=folder)
    assert result.status == 0, result.stderr
    return folder


def exported(folder, *flags):
    """Runs export.py, which must end well, and returns what it printed."""
    result = run_script("export.py", *flags, cwd=folder)
    assert result.status == 0, result.stderr
    return result.stdout


def test_pairs_of_a_run_name_the_images_as_predictions_csv_does(evaluated, tiny_benchmark):
    (run,) = (evaluated / "logs" / "eval").iterdir()
    stdout = exported(evaluated, "pairs", f"--run={run}", "--output=run.txt", "--num_matched=3")
    with open(run / "predictions.csv", newline="") as file:
        rows = [(row["query"], row["database_photo"]) for row in csv.DictReader(file) if int(row["rank"]) <= 3]
    assert colmap_pairs(evaluated / "run.txt") == rows and len(rows) == 30
    assert f"relative to {tiny_benchmark / 'tiny' / 'images' / 'test'}.\n" in stdout
    assert all((tiny_benchmark / "tiny/images/test" / name).is_file() for pair in rows for name in pair)


def test_the_features_of_an_index_have_the_names_of_the_pairs(evaluated, tiny_benchmark):
    pytest.importorskip("h5py")
    root = f"--image_root={tiny_benchmark / 'tiny' / 'images' / 'test'}"
    index = f"--index={evaluated / 'index'}"
    exported(evaluated, "hloc", index, "--output=features.h5", root)
    exported(evaluated, "pairs", index, "--output=index.txt", root, "--num_matched=15")
    names = {os.path.join("database", path.name) for path in (tiny_benchmark / "tiny/images/test/database").iterdir()}
    assert set(hloc_names(evaluated / "features.h5")) == names
    assert {name: {name, *others} for name, others in hloc_pairs(evaluated / "index.txt").items()} == dict.fromkeys(
        names, names
    )
    stdout = exported(
        evaluated, "pairs", index, "--output=loops.txt", root, "--min_gap=2", "--suppress=0", "--max_distance=512"
    )
    loops = hloc_pairs(evaluated / "loops.txt")
    assert "14 loops in the sequence" in stdout and list(loops) == sorted(names)[2:]
    assert all(len(earlier) == 1 and earlier[0] < later for later, earlier in loops.items())
    stdout = exported(evaluated, "npy", index, "--output=npy")
    assert stdout.splitlines()[-1] == "Exported to npy." and "holds 16 images" in stdout
    assert np.load(evaluated / "npy" / "database_descriptors.npy").shape == (16, 512)


def test_a_safetensors_file_is_a_new_one(checkpoints, tmp_path):
    pytest.importorskip("safetensors")
    flags = f"--resume={checkpoints['two_branch']}", f"--output={tmp_path / 'model.safetensors'}"
    result = run_here("export.py", "safetensors", *flags, cwd=tmp_path)
    assert result.status == 0 and "--backbone=vit-tiny --aggregation=gem --hashing --rerank" in result.stdout
    before = (tmp_path / "model.safetensors").read_bytes()
    for output, words in ((flags[1], "exists already"), ("--output=nowhere/a", "No folder")):
        result = run_here("export.py", "safetensors", flags[0], output, cwd=tmp_path)
        assert result.status == 2 and words in result.stderr
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_safetensors_file_in_half_precision(checkpoints, tmp_path):
    pytest.importorskip("safetensors")
    flags = f"--resume={checkpoints['two_branch']}", "--fp16", "--output=model.safetensors"
    result = run_here("export.py", "safetensors", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    model, loaded = (load_any_model(str(path)) for path in (checkpoints["two_branch"], tmp_path / "model.safetensors"))
    assert loaded.config == model.config
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().to(value.dtype)), name
    entries = sum(value.numel() for value in model.state_dict().values())
    assert (tmp_path / "model.safetensors").stat().st_size < 2.1 * entries + 50_000  # 2 bytes each, and their names
    with torch.no_grad():
        model.linear1.weight[0, 0] = -65520.0  # the smallest number that is rounded to infinity
    with pytest.raises(InputError, match=r"'linear1.weight' has values up to 6.55e\+04.*65504.*--fp16"):
        export_safetensors(model, tmp_path / "again.safetensors", half=True)
    assert not (tmp_path / "again.safetensors").exists()
