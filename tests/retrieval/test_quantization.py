"""Descriptors in 8 bits: against a naive loop, in an index, and by the scripts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.evaluations import evaluate
from helpers.indexes import SETTINGS, make_chunk, write, writer_of
from helpers.models import build
from helpers.processes import run_script

from datasets.image_set import ImageSet
from model import InputError
from model.index.quantization import QuantizedArray, quantize
from utils.retrieval.features import DiskArray, Features, SearchResult
from utils.retrieval.index import Index, metadata_of
from utils.retrieval.search import rerank, search_l2


def naive_quantize(row):
    """The codes and the scale of one descriptor, in float64."""
    scale = max(abs(float(value)) for value in row) / 127
    return [0 if scale == 0 else round(float(value) / scale) for value in row], scale


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_quantisation_is_that_of_a_naive_loop(seed, dtype):
    random = np.random.default_rng(seed)
    descriptors = (random.standard_normal((30, 40)) * random.uniform(0.01, 100, (30, 1))).astype(dtype)
    descriptors[3] = 0
    codes, scales = quantize(descriptors)
    assert codes.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (30, 1)
    for row, code, scale in zip(descriptors, codes, scales[:, 0], strict=True):
        expected_code, expected_scale = naive_quantize(row)
        assert scale == pytest.approx(expected_scale, rel=1e-6)
        assert code.tolist() == expected_code
    error = np.abs(descriptors.astype(np.float64) - codes * scales.astype(np.float64))
    assert (error <= scales / 2 * (1 + 1e-5)).all()
    assert np.abs(codes).max(axis=1).tolist() == [127] * 3 + [0] + [127] * 26


@pytest.fixture
def quantized(tmp_path):
    """Descriptors [20, 8], and the same quantised, with the codes in a file."""
    descriptors = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    codes, scales = quantize(descriptors)
    codes.tofile(tmp_path / "codes")
    return descriptors, QuantizedArray(DiskArray(tmp_path / "codes", codes.dtype, codes.shape), scales)


@pytest.mark.parametrize("rows", [slice(None), slice(3, 9), slice(18, 40), np.array([4, 4, 19, 0]), np.array([], int)])
def test_rows_are_read_as_floats(quantized, rows):
    descriptors, array = quantized
    assert len(array) == 20 and array.shape == (20, 8)
    actual = array[rows]
    assert actual.dtype == array.dtype == np.float32 and actual.shape == descriptors[rows].shape
    np.testing.assert_allclose(actual, descriptors[rows], atol=np.abs(descriptors).max() / 254 * 1.001)


def test_search_and_reranking_are_those_of_the_rows_as_floats(quantized):
    descriptors, array = quantized
    candidates = SearchResult(np.zeros((20, 6), np.int32), np.arange(120).reshape(20, 6) % 20, ["hamming"] * 6)
    images = ImageSet.without_positions([str(i) for i in range(20)])
    quantized, floats, queries = (Features(images, None, part) for part in (array, array[:], descriptors))
    for actual, expected in (
        (search_l2(array, descriptors, 5), search_l2(array[:], descriptors, 5)),
        (rerank(candidates, quantized, queries, rerank_num=4), rerank(candidates, floats, queries, rerank_num=4)),
    ):
        np.testing.assert_array_equal(actual.indices, expected.indices)
        np.testing.assert_array_equal(actual.distances, expected.distances)


@pytest.fixture(scope="module")
def metadata():
    torch.manual_seed(0)
    model = build("vit-tiny", "gem", hashing=True, rerank=True)
    return replace(metadata_of(model, SETTINGS), descriptor_dtype="int8")


def test_what_was_written_comes_back(tmp_path, metadata):
    index = Index(write(tmp_path / "index", metadata, [3, 1, 5]))
    chunks = [make_chunk(first, size) for first, size in ((0, 3), (3, 1), (4, 5))]
    codes, scales = quantize(np.concatenate([chunk.descriptors for chunk in chunks]))
    assert (tmp_path / "index" / "descriptors.bin").read_bytes() == codes.tobytes()
    assert (tmp_path / "index" / "scales.bin").read_bytes() == scales.tobytes() and scales.nbytes == 4 * 9
    descriptors = index.features().descriptors
    np.testing.assert_array_equal(descriptors[:], codes * scales)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("read", ["load", "append"])
def test_damaged_scales_are_refused_and_named(tmp_path, metadata, damage, read):
    folder = write(tmp_path / "index", metadata, [3, 3])
    path = folder / "scales.bin"
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-4]}[damage])
    if (read, damage) == ("append", "flip"):
        read = "load"  # appending does not read them
    with pytest.raises(InputError, match="scales.bin"):
        Index(folder) if read == "load" else writer_of(folder, metadata, append=True)
    if damage != "flip":
        with pytest.raises(InputError, match="scales.bin"):
            Index(folder, verify=False)


@pytest.mark.slow
def test_the_scripts_find_the_same_images_with_descriptors_in_int8(tmp_path, tiny_benchmark, checkpoints):
    arguments = "two_branch", tiny_benchmark, checkpoints["two_branch"], tmp_path
    expected = evaluate(*arguments, "--recall_values", 1, 5)
    recalls = results(tmp_path)["recalls"]
    saved = evaluate(*arguments, "--recall_values", 1, 5, "--save_index=index", "--descriptor_dtype=int8")
    assert abs(results(tmp_path)["recalls"]["1"] - recalls["1"]) <= 10  # one of ten queries
    assert saved != expected  # the distances differ slightly
    assert [row[:2] for row in rows(saved)] == [row[:2] for row in rows(expected)]
    assert [float(row[3]) for row in rows(saved)] == pytest.approx([float(row[3]) for row in rows(expected)], abs=0.01)
    assert evaluate(*arguments, "--recall_values", 1, 5, "--load_index=index", "--trust_index") == saved
    image = next((tiny_benchmark / "tiny/images/test/queries").iterdir())
    result = run_script("search.py", image, "--index=index", "--device=cpu", cwd=tmp_path)
    assert result.status == 0 and "holds 16 images" in result.stdout, result.stderr


def rows(text):
    return [line.split(",") for line in text.splitlines()[1:]]


def results(cwd):
    """results.json of the last run in this folder."""
    return json.loads(max(cwd.glob("logs/eval/*/results.json"), key=lambda path: path.stat().st_mtime).read_text())
