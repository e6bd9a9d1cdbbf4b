"""The search by codes with matrix products, on the CPU (tests/test_gpu.py: on a GPU), against loops and faiss."""

import numpy as np
import pytest
import torch
from helpers.oracles import naive_hamming

from datasets.image_set import ImageSet
from utils.retrieval import gpu_search, search
from utils.retrieval.features import Features
from utils.retrieval.gpu_search import search_hamming_on_device


def make_codes(seed, count, code_bytes, values=256):
    """Random packed codes; with few values almost everything is a tie."""
    return np.random.default_rng(seed).integers(0, values, (count, code_bytes), dtype=np.uint8)


@pytest.mark.parametrize("block", [1, 7, 20, 64])  # of 40 codes
@pytest.mark.parametrize(("code_bytes", "values"), [(1, 2), (1, 256), (8, 256), (64, 256)])
@pytest.mark.parametrize("count", [1, 5])
def test_it_finds_what_a_naive_loop_finds(monkeypatch, block, code_bytes, values, count):
    monkeypatch.setattr(gpu_search, "DATABASE_BLOCK", block)
    monkeypatch.setattr(gpu_search, "QUERY_BLOCK", 2)
    database = make_codes(block, 40, code_bytes, values)
    queries = np.concatenate([make_codes(1, count, code_bytes, values), database[3:4]])
    for k in (1, 7, 40, 41):
        distances, indices = search_hamming_on_device(database, queries, k, device="cpu")
        assert distances.dtype == np.int32 and indices.dtype == np.int64
        expected = naive_hamming(database, queries, k)
        np.testing.assert_array_equal(distances, expected[0])
        np.testing.assert_array_equal(indices, expected[1])


@pytest.mark.parametrize("code_bytes", [64, 256])
def test_every_distance_is_exact(code_bytes):
    """Float16 holds every product of codes of up to 2048 bits."""
    bits = 8 * code_bytes
    database = np.packbits(np.tri(bits + 1, bits, -1, dtype=np.uint8), axis=1)  # code i has i bits
    queries = database[[0, bits]]
    distances, indices = search_hamming_on_device(database, queries, bits + 1, device="cpu")
    assert distances.tolist() == [list(range(bits + 1))] * 2
    assert indices.tolist() == [list(range(bits + 1)), list(range(bits, -1, -1))]


def test_it_finds_what_faiss_finds_in_many_codes(monkeypatch):
    monkeypatch.setattr(gpu_search, "DATABASE_BLOCK", 1024)
    database, queries = make_codes(0, 5000, 64, 2), make_codes(1, 3, 64, 2)  # 64 bits that vary
    expected = search.search_hamming(database, queries, 300)
    distances, indices = search_hamming_on_device(database, queries, 300, device="cpu")
    np.testing.assert_array_equal(distances, expected.distances)
    np.testing.assert_array_equal(indices, expected.indices)


def fail_above(size, monkeypatch):
    """Makes the search run out of memory with larger blocks of the database. Returns the sizes that were tried."""
    tried, run = [], gpu_search._search

    def limited(*arguments, block_size, device):
        tried.append(block_size)
        if block_size > size:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(*arguments, block_size=block_size, device=torch.device("cpu"))

    monkeypatch.setattr(gpu_search, "_search", limited)
    return tried


def test_without_memory_for_a_block_it_takes_smaller_ones(monkeypatch, caplog):
    tried = fail_above(1 << 15, monkeypatch)
    database, queries = make_codes(0, 300, 8), make_codes(1, 4, 8)
    result = search.search_hamming(database, queries, 9, device="cuda:0")
    expected = search.search_hamming(database, queries, 9)
    np.testing.assert_array_equal(result.indices, expected.indices)
    np.testing.assert_array_equal(result.distances, expected.distances)
    assert result.metric == expected.metric
    assert tried == [1 << 17, 1 << 16, 1 << 15]
    assert "retrying with blocks of 32768 codes" in caplog.messages[-1] and len(caplog.messages) == 2


def test_without_memory_for_the_smallest_block_the_cpu_searches(monkeypatch, caplog):
    tried = fail_above(0, monkeypatch)
    database, queries = make_codes(0, 300, 8), make_codes(1, 4, 8)
    result = search.search_hamming(database, queries, 9, device="cuda")
    np.testing.assert_array_equal(result.indices, naive_hamming(database, queries, 9)[1])
    assert tried[-1] == gpu_search.MIN_DATABASE_BLOCK
    assert "runs on the CPU instead" in caplog.messages[-1]


def test_crops_and_other_devices(monkeypatch):
    database, queries = make_codes(0, 30, 8), make_codes(1, 12, 8)
    tried = fail_above(1 << 17, monkeypatch)
    expected = search.search_hamming(database, queries, 5)
    np.testing.assert_array_equal(search.search_hamming(database, queries, 5, device="mps").indices, expected.indices)
    assert not tried
    crops = search.search_hamming(database, queries.reshape(4, 3, 8), 5, device="cuda")
    assert len(tried) == 1
    np.testing.assert_array_equal(crops.indices, expected.indices)
    images = ImageSet.without_positions([])
    found = search.search(Features(images, database, None), Features(images, queries, None), 5, device="cuda")
    assert len(tried) == 2
    np.testing.assert_array_equal(found.indices, expected.indices)
