"""Codes that are made of float descriptors: naive loops, the same results from an index, and what is refused."""

import csv
import json
import os
import re
import shutil
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluations import evaluate, flags_for
from helpers.indexes import SETTINGS, content, forge_metadata, make_chunk
from helpers.models import build
from helpers.processes import run_script, start_script

from model import InputError, ModelConfig, PlaceRecognizer
from model.index.coding import Coding
from model.index.manifest import MANIFEST
from model.index.projections import CODING_FILE, Projections
from model.rows import codes_of, hamming_distances, words_of
from utils.retrieval.code_file import read_code_file, write_code_file
from utils.retrieval.codes import encode_all, fit_coding, sample_rows
from utils.retrieval.config import CodesConfig, IndexConfig
from utils.retrieval.extraction import project
from utils.retrieval.index import Index, IndexWriter, metadata_of
from utils.retrieval.index.reader import SeveralIndexes

RANDOM = ["--codes=random", "--code_bits=24", "--rerank_num=5"]


def descriptors_of(seed, rows=200, dim=32):
    """L2-normalised descriptors about a common mean, with variances that fall from component to component."""
    random = np.random.default_rng(seed)
    rows = 1 + random.standard_normal((rows, dim)) * 0.9 ** np.arange(dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def naive_bits(coding, descriptor):
    """One bit after the other, in float64."""
    return [
        sum((float(x) - float(m)) * float(w) for x, m, w in zip(descriptor, coding.mean, column, strict=True)) >= 0
        for column in coding.matrix.T
    ]


@pytest.mark.parametrize(("method", "bits"), [("itq", 16), ("random", 24), ("random", 72)])
def test_codes_are_the_signs_of_products_with_what_was_fitted(method, bits):
    descriptors = descriptors_of(0)
    coding = fit_coding(descriptors, method, bits)
    assert (coding.dim, coding.bits, coding.method) == (32, bits, method)
    codes = coding.encode(descriptors[:10].reshape(2, 5, 32))
    assert codes.shape == (2, 5, bits // 8) and codes.dtype == np.uint8
    expected = [naive_bits(coding, descriptor) for descriptor in descriptors[:10]]
    np.testing.assert_array_equal(np.unpackbits(codes, axis=2).reshape(10, bits), expected)
    np.testing.assert_array_equal(encode_all(coding, descriptors)[:10], codes.reshape(10, -1))
    again = Coding.from_rows(method, coding.rows)
    np.testing.assert_array_equal(again.encode(descriptors), coding.encode(descriptors))


@pytest.mark.parametrize(("method", "bits"), [("itq", 16), ("random", 16), ("random", 80)])
def test_a_seed_gives_the_same_codes_and_another_one_others(method, bits):
    descriptors = descriptors_of(0)
    first, second, other = (fit_coding(descriptors, method, bits, seed).rows for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first[1:], other[1:])
    np.testing.assert_allclose(first[0], descriptors.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("rows", [200, 24])
def test_itq_turns_the_principal_components_towards_signs(rows):
    """Its columns span the first components, for fewer descriptors than dimensions, too; and its signs are nearer."""
    descriptors = descriptors_of(0, rows)
    coding = fit_coding(descriptors, "itq", 16)
    np.testing.assert_allclose(coding.matrix.T @ coding.matrix, np.eye(16), atol=1e-4)
    centred = descriptors.astype(np.float64) - descriptors.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    inside = axes[:16] @ coding.matrix
    np.testing.assert_allclose(np.linalg.norm(inside, axis=0), 1, atol=1e-3)

    # After the last step no rotation brings the values much closer to their signs (orthogonal Procrustes problem).
    values = centred @ coding.matrix
    signs = np.sign(values)
    left, _, right = np.linalg.svd(values.T @ signs)
    nearest = np.square(signs - values @ left @ right).sum()
    assert np.square(signs - values).sum() < np.square(np.sign(centred @ axes[:16].T) - centred @ axes[:16].T).sum()
    assert nearest <= np.square(signs - values).sum() < 1.0005 * nearest


@pytest.mark.parametrize("bits", [16, 32, 80])
def test_random_directions_are_orthogonal_as_far_as_there_are_dimensions(bits):
    matrix = fit_coding(descriptors_of(0), "random", bits).matrix
    for start in range(0, bits, 32):
        block = matrix[:, start : start + 32]
        np.testing.assert_allclose(block.T @ block, np.eye(block.shape[1]), atol=1e-5)


@pytest.mark.parametrize("bits", [8, 24, 64, 72, 520])
def test_words_of_codes_give_hamming_distances_of_any_length(bits):
    codes = np.random.default_rng(0).integers(0, 256, (30, bits // 8), dtype=np.uint8)
    words = words_of(codes)
    np.testing.assert_array_equal(codes_of(words, bits // 8), codes)
    expected = np.unpackbits(codes ^ codes[7], axis=1).sum(axis=1)
    np.testing.assert_array_equal(hamming_distances(words, words_of(codes[7:8])[:, 0]), expected)


def test_a_sample_is_drawn_with_a_seed_and_all_images_where_these_suffice():
    config = CodesConfig(source="itq", seed=3, max_images=50)
    rows = sample_rows(1000, config)
    assert len(rows) == len(set(rows)) == 50 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sample_rows(1000, config))
    assert not np.array_equal(rows, sample_rows(1000, replace(config, seed=4)))
    np.testing.assert_array_equal(sample_rows(50, config), np.arange(50))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "itq", "bits": 12}, "12 bits.*multiple of 8"),
        ({"source": "random", "bits": 4096}, "4096 bits.*to 2048"),
        ({"bits": 64}, "give --codes, too"),
    ],
)
def test_settings_that_no_codes_have(values, words):
    with pytest.raises(InputError, match=words):
        CodesConfig(**values)


@pytest.mark.parametrize(
    ("method", "bits", "rows", "words"),
    [
        ("itq", 40, 200, "--code_bits 40 is too large: ITQ of 32-dimensional .* at most 32 bits"),
        ("itq", 32, 32, "cannot be fitted to 32 images; it needs 33"),
        ("random", 32, 1, "cannot be fitted to 1 images; it needs 2"),
    ],
)
def test_what_cannot_be_fitted(method, bits, rows, words):
    with pytest.raises(InputError, match=words):
        fit_coding(descriptors_of(0, rows), method, bits)


@pytest.fixture(scope="module")
def model():
    return build("vit-tiny", "gem").eval()


@pytest.fixture
def trained(tmp_path, model):
    """The file of a coding for the model's descriptors, and the metadata of an index of these."""
    random = np.random.default_rng(0)
    coding = Coding("trained", random.standard_normal(512), random.standard_normal((512, 24)))
    metadata = metadata_of(model, SETTINGS)
    write_code_file(tmp_path / "codes.bin", coding, metadata)
    return tmp_path / "codes.bin", coding, metadata


def test_a_file_of_trained_codes_is_read_as_it_was_written(trained):
    path, coding, metadata = trained
    found = read_code_file(path, metadata)
    assert found.method == "trained"
    np.testing.assert_array_equal(found.rows, coding.rows)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-4], "is damaged.*checksum"),
        (lambda data: data + b"\0", "is damaged.*checksum"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is damaged.*checksum"),
        (lambda data: b"PK\x03\x04 a checkpoint", "no file of train_codes.py"),
        (lambda data: data.replace(b'"format": 1', b'"format": 2'), "format 2; this version reads format 1"),
        (lambda data: data.replace(b'"code_bits": 24', b'"code_bits": 12'), "is damaged.*12 bits"),
    ],
)
def test_a_damaged_file_of_codes_is_refused(trained, damage, words):
    path, _, metadata = trained
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=words):
        read_code_file(path, metadata)


def test_trained_codes_of_another_model_are_refused(trained):
    path, _, metadata = trained
    for changes in ({"weights_sha256": "0"}, {"descriptor_dim": 6, "pca_sha256": "0", "pca_input_dim": 512}):
        with pytest.raises(InputError, match="another model: .*Train one for this model"):
            read_code_file(path, replace(metadata, **changes))


# ---- Indexes


def projections_of(seed=0, bits=24):
    return Projections(coding=fit_coding(make_chunk(seed, 30).descriptors, "random", bits))


def write(folder, model, projections, sizes, append=False):
    metadata = metadata_of(model, SETTINGS, projections=projections)
    with IndexWriter(IndexConfig(folder=folder, append=append), metadata, projections) as writer:
        for i, size in enumerate(sizes):
            writer.append(project(projections, make_chunk(1000 * i, size)._replace(codes=None)))
        writer.features()
    return folder


def test_an_index_keeps_its_coding_and_a_program_searches_it_in_two_stages(tmp_path, model):
    projections = projections_of()
    folder = write(tmp_path / "index", model, projections, [12, 8])
    index = Index(folder)
    assert (index.metadata.code_bits, index.metadata.is_two_stage) == (24, True)
    np.testing.assert_array_equal(index.projections.coding.rows, projections.coding.rows)
    np.testing.assert_array_equal(np.fromfile(folder / CODING_FILE, "<f4").reshape(25, 512), projections.coding.rows)
    features = index.features()
    np.testing.assert_array_equal(features.codes, projections.coding.encode(features.descriptors[:]))
    opened = PlaceRecognizer.open(folder, model, rerank_num=4)
    queries = [np.random.default_rng(seed).integers(0, 256, (60, 60, 3), np.uint8) for seed in range(3)]
    described = opened.describe(queries)
    np.testing.assert_array_equal(described.code, projections.coding.encode(described.descriptor))
    for query, matches in zip(range(3), opened.search(described, k=3), strict=True):
        hamming = np.unpackbits(features.codes ^ described.code[query], axis=1).sum(axis=1)
        first = np.argsort(hamming, kind="stable")[:4]
        distances = np.linalg.norm(features.descriptors[first] - described.descriptor[query], axis=1)
        assert [match.id for match in matches] == first[np.argsort(distances, kind="stable")][:3].tolist()
        assert matches[0].metric == "l2"
    opened.add(described)
    opened.save(folder)
    opened.save(tmp_path / "copy")
    np.testing.assert_array_equal(Index(folder).features().codes[-3:], described.code)
    for name in (CODING_FILE, "codes.bin"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_indexes_that_differ_in_their_codes_say_how_to_build_them(tmp_path, model):
    one, other = (Index(write(tmp_path / str(i), model, projections_of(i), [4])) for i in range(2))
    with pytest.raises(InputError, match="coding_sha256 .*build both with one file of train_codes.py"):
        SeveralIndexes([one, other])


def test_codes_of_a_training_that_diverged_are_not_written(tmp_path, model):
    coding = projections_of().coding
    coding.matrix[0, 0] = np.nan
    with pytest.raises(InputError, match="smaller --lr"):
        write_code_file(tmp_path / "codes.bin", coding, metadata_of(model, SETTINGS))
    assert not list(tmp_path.iterdir())


def test_an_index_with_other_codes_is_refused(tmp_path, model):
    folder = write(tmp_path / "index", model, projections_of(), [4])
    before = content(folder)
    for projections in (projections_of(1), projections_of(bits=32), Projections()):
        with pytest.raises(InputError, match="built differently: .*coding_sha256"):
            write(folder, model, projections, [5], append=True)
    assert content(folder) == before
    with pytest.raises(InputError, match="another model"):
        PlaceRecognizer.open(folder, build("vit-tiny", "gem").eval())


def test_a_recogniser_of_the_kind_of_a_copy_in_a_search_engine_takes_its_coding(tmp_path, model):
    index = Index(write(tmp_path / "index", model, projections_of(), [4]))
    made = PlaceRecognizer.of_kind(index.metadata, "milvus://h:1/x", model, projections=index.projections)
    image = np.zeros((56, 56, 3), np.uint8)
    np.testing.assert_array_equal(
        made.describe(image).code, PlaceRecognizer.open(index.folder, model).describe(image).code
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_coding_is_refused(tmp_path, model, damage):
    path = write(tmp_path / "index", model, projections_of(), [4]) / CODING_FILE
    data = path.read_bytes()
    path.write_bytes(data[:-4] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    if damage == "remove":
        path.unlink()
    with pytest.raises(InputError, match="coding.bin is .*Rebuild"):
        Index(path.parent, verify=False)


@pytest.mark.parametrize(
    "changes",
    [
        *({"code_bits": value} for value in (0, 12, 4096, 24.0)),
        *({"coding_method": value} for value in (None, "lsh", 1)),
        *({"coding_sha256": None}, {"model": asdict(ModelConfig(backbone="vit-tiny", hashing=True, rerank=True))}),
    ],
    ids=str,
)
def test_metadata_of_codes_that_are_not_valid(tmp_path, model, changes):
    folder = write(tmp_path / "index", model, projections_of(), [4])
    forge_metadata(folder, changes)
    with pytest.raises(InputError, match="metadata.json is damaged"):
        Index(folder)


# ---- Scripts


def found(predictions):
    """{query: database images, best first} of the text of a predictions.csv."""
    rows = {}
    for row in csv.DictReader(predictions.splitlines()):
        rows.setdefault(row["query"], []).append(row["database_photo"])
    return rows


def test_two_stages_of_an_evaluation_are_those_of_naive_loops(tmp_path, tiny_benchmark, checkpoints):
    """Where re-ranking covers all images, they are those of the float search. An index gives the same results."""
    arguments = "float", tiny_benchmark, checkpoints["float"], tmp_path, "--infer_batch_size=1"
    exact = found(evaluate(*arguments))
    covering = evaluate(*arguments, *RANDOM[:2], "--rerank_num=16")
    assert found(covering) == exact
    expected = evaluate(*arguments, *RANDOM, "--save_index=index")
    assert evaluate(*arguments, "--load_index=index", "--rerank_num=5") == expected
    assert evaluate(*arguments, "--save_index=index", "--append", "--rerank_num=5") == expected
    index = Index(tmp_path / "index")
    features, results = index.features(), found(expected)
    queries = sorted((tiny_benchmark / "tiny" / "images" / "test" / "queries").iterdir())
    recognizer = PlaceRecognizer.open(tmp_path / "index")
    recognizer._exif_orientation = False
    described = recognizer.describe(list(map(str, queries)))
    names = list(index.images.paths)
    for i, query in enumerate(queries):
        bits = naive_bits(index.projections.coding, described.descriptor[i])
        np.testing.assert_array_equal(np.unpackbits(described.code[i]), bits)
        hamming = [sum(a != b for a, b in zip(np.unpackbits(code), bits, strict=True)) for code in features.codes]
        order = sorted(range(16), key=lambda row: (hamming[row], row))
        floats = np.linalg.norm(features.descriptors[:] - described.descriptor[i], axis=1)
        order[:5] = sorted(order[:5], key=lambda row: floats[row])
        expected = [f"database/{Path(names[row]).name}" for row in order]
        assert results[f"queries/{query.name}"] == expected


@pytest.mark.proof
def test_a_build_that_was_killed_continues_with_its_coding(tmp_path, tiny_benchmark, checkpoints):
    images = tiny_benchmark / "tiny" / "images" / "test" / "database"
    command = [images, "--index", "index", "--resize", 56, 56, "--device=cpu", "--num_workers=0"]
    command += [f"--resume={checkpoints['float']}", "--codes=random", "--code_bits=24"]
    prelude = "from utils.retrieval import extraction; extraction.CHUNK_SIZE = 4"
    result = start_script("build_index.py", *command, cwd=tmp_path, prelude=prelude).result()
    assert result.status == 0, result.stderr
    complete = content(tmp_path / "index")
    killed = shutil.copytree(tmp_path / "index", tmp_path / "killed")
    lines = (killed / MANIFEST).read_bytes().splitlines(keepends=True)
    (killed / MANIFEST).write_bytes(b"".join(lines[:3]))
    command[2] = "killed"
    result = start_script("build_index.py", *command, "--append", cwd=tmp_path, prelude=prelude).result()
    assert result.status == 0, result.stderr
    assert content(killed) == complete
    photo = sorted(images.iterdir())[3]
    result = run_script("search.py", photo, "--index=killed", "--device=cpu", "--json", cwd=tmp_path)
    assert result.status == 0, result.stderr
    match = json.loads(result.stdout)["queries"][0]["matches"][0]
    assert (match["path"], match["metric"]) == (str(photo), "l2")
    (tmp_path / "more").mkdir()
    shutil.copy(photo, tmp_path / "more" / "new.jpg")
    for folder in ("more", images):  # also where nothing is new
        result = run_script("build_index.py", folder, *command[1:-2], "--append", "--codes=itq", cwd=tmp_path)
        assert result.status == 2 and "the index killed holds codes of 24 bits (random)" in result.stderr


def test_codes_of_a_watched_folder_are_fitted_to_all_files_that_can_be_read(tmp_path, tiny_benchmark, checkpoints):
    """They wait for files that are being written, not for one that is damaged."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "damaged.jpg").write_bytes(b"no image")
    for photo in (tiny_benchmark / "tiny" / "images" / "test" / "database").iterdir():
        (tmp_path / "photos" / photo.name).write_bytes(photo.read_bytes())
    os.utime(sorted((tmp_path / "photos").iterdir())[0], (1e9, 1e9))  # alone it would be too few to fit to
    command = ["photos", "--index=index", f"--resume={checkpoints['float']}", "--resize", 56, 56, "--num_workers=0"]
    command += ["--codes=itq", "--code_bits=8", "--watch=2", "--device=cpu"]
    running = start_script("build_index.py", *command, cwd=tmp_path)
    deadline = time.monotonic() + 150
    while not (running.stdout.exists() and "is complete" in running.stdout.read_text()):
        assert time.monotonic() < deadline and running.process.is_alive()
        time.sleep(0.05)
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.result().status == 143
    assert len(Index(tmp_path / "index")) == 16


@pytest.mark.parametrize(
    ("script", "mode", "flags", "words"),
    [
        ("eval.py", "float", ["--codes=random", "--code_bits=12"], "12 bits.*multiple of 8"),
        ("eval.py", "float", ["--codes=itq", "--code_bits=16"], "cannot be fitted to 16 images"),
        ("eval.py", "float", ["--codes=itq", "--code_bits=1024"], "at most 512 bits"),
        ("eval.py", "float", ["--codes=nowhere"], "no file nowhere"),
        ("eval.py", "float", ["--rerank_num=5"], "applies to a search by codes"),
        ("eval.py", "float", ["--rerank_num=5", "--save_index=index", "--append"], "and the index has none"),
        ("eval_rerank.py", "two_branch", ["--codes=itq"], "gives codes of its own"),
        ("eval_hashing.py", "hashing", ["--codes=itq"], "gives codes of its own"),
    ],
)
def test_codes_that_an_evaluation_refuses(tmp_path, tiny_benchmark, checkpoints, script, mode, flags, words):
    result = run_script(script, *flags_for(tiny_benchmark, checkpoints[mode], *flags), cwd=tmp_path)
    assert result.status == 2
    assert re.search(words, " ".join(result.stderr.split()))
