"""Search, re-ranking, packed codes, recall and mean average precision against naive loops on random input."""

import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from helpers.oracles import described, mapillary_apk, naive_hamming, naive_l2, naive_length

from datasets.image_set import ImageSet
from model import InputError
from utils.retrieval import search
from utils.retrieval.config import IVFConfig
from utils.retrieval.extraction import pack_codes
from utils.retrieval.features import DiskArray, Features, SearchResult
from utils.retrieval.index.inverted_file import InvertedFile
from utils.retrieval.metrics import average_precision_at, correct_predictions, format_recalls, recalls_at

SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("code_bytes", [1, 8, 64])  # with 8 bits almost everything is a tie
def test_search_hamming(seed, code_bytes, monkeypatch):
    monkeypatch.setattr(search, "QUERY_BLOCK", 5)
    random = np.random.default_rng(seed)
    database = random.integers(0, 256, (40, code_bytes), dtype=np.uint8)
    queries = np.concatenate([random.integers(0, 256, (10, code_bytes), dtype=np.uint8), database[3:5]])
    for k in (1, 7, 40):
        expected = naive_hamming(database, queries, k)
        distances, predictions, metric = search.search_hamming(database, queries, k)
        np.testing.assert_array_equal(predictions, expected[1])
        np.testing.assert_array_equal(distances, expected[0])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threads", [2, 3])
def test_search_hamming_of_a_single_query_by_parts_of_the_database(seed, threads, monkeypatch):
    monkeypatch.setattr(search, "MIN_CODES_PER_THREAD", 5)
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: threads)
    calls = []
    knn = search._knn_hamming
    monkeypatch.setattr(search, "_knn_hamming", lambda *arguments: calls.append(arguments) or knn(*arguments))
    random = np.random.default_rng(seed)
    database, query = (random.integers(0, 4, (n, 1), dtype=np.uint8) for n in (43, 1))  # almost everything is a tie
    for k in (1, 20, 43):
        expected = naive_hamming(database, query, k)
        distances, predictions, metric = search.search_hamming(database, query, k)
        np.testing.assert_array_equal(predictions, expected[1])
        np.testing.assert_array_equal(distances, expected[0])
    assert len(calls) == 3 * threads


@pytest.mark.parametrize("seed", SEEDS)
def test_an_inverted_file(seed):
    random = np.random.default_rng(seed)
    database = random.integers(0, 256, (400, 8), dtype=np.uint8)
    queries = database[:50] ^ (random.random((50, 8)) < 0.2).astype(np.uint8)
    exact = naive_hamming(database, queries, 5)
    distances, predictions, metric = InvertedFile(database, IVFConfig(nlist=8, nprobe=8)).search(queries, 5)
    np.testing.assert_array_equal(distances, exact[0])  # it searched every list
    assert metric == ["hamming"] * 5
    for query, row, lengths in zip(queries, predictions, distances, strict=True):
        assert [int(np.unpackbits(query ^ database[i]).sum()) for i in row] == lengths.tolist()
        assert len(set(row.tolist())) == 5
    fewer = InvertedFile(database, IVFConfig(nlist=8, nprobe=1)).search(queries, 5).distances
    assert (fewer >= distances).all() and (fewer > distances).any()


def test_an_inverted_file_refuses_too_many_lists_and_too_few_probes():
    codes = np.random.default_rng(0).integers(0, 256, (40, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match="41 lists need at least as many codes, but the database has 40"):
        InvertedFile(codes, IVFConfig(nlist=41, nprobe=1))
    with pytest.raises(ValueError, match="NPROBE"):
        InvertedFile(codes, IVFConfig(nlist=8, nprobe=1)).search(codes[:4], 39)
    with pytest.raises(ValueError, match="NPROBE must not exceed NLIST"):
        IVFConfig(nlist=8, nprobe=9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block_rows", [1, 3, 7, 1000])
def test_search_l2(seed, block_rows, monkeypatch, tmp_path):
    monkeypatch.setattr(search, "DATABASE_BLOCK_BYTES", block_rows * 4 * 12)
    random = np.random.default_rng(seed)
    database, queries = (random.standard_normal((n, 12)).astype(np.float32) for n in (30, 9))
    for k in (1, 8, 30):
        expected = naive_l2(database, queries, k)
        for rows in (database, disk_array(database, tmp_path / "database")):
            distances, predictions, metric = search.search_l2(rows, queries, k)
            np.testing.assert_array_equal(predictions, expected[1])
            np.testing.assert_allclose(distances, expected[0], rtol=1e-5)
            assert distances.dtype == np.float32


def disk_array(array, path):
    """The array in a file, read from there on demand."""
    array.tofile(path)
    return DiskArray(path, array.dtype, array.shape)


def test_k_larger_than_the_database_gives_the_whole_database():
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (6, 8), dtype=np.uint8)
    descriptors = random.standard_normal((6, 8)).astype(np.float32)
    for distances, predictions, metric in (
        search.search_hamming(codes, codes[:4], 100),
        search.search_l2(descriptors, descriptors[:4], 100),
    ):
        assert len(metric) == 6
        assert distances.shape == predictions.shape == (4, 6)
        assert [sorted(row) for row in predictions.tolist()] == [list(range(6))] * 4  # and no -1


@pytest.mark.parametrize("where", ["database", "queries"])
def test_search_l2_never_answers_with_minus_one(where):
    """For descriptors that are not numbers faiss answers -1, which NumPy takes for the last photo."""
    arrays = {"database": np.eye(6, dtype=np.float32), "queries": np.eye(6, dtype=np.float32)[:3] + 0.1}
    arrays[where][1] = np.nan
    try:
        _, predictions, _ = search.search_l2(arrays["database"], arrays["queries"], 6)
    except ValueError:  # to refuse them is as good
        return
    assert predictions.min() >= 0, predictions


def features_of(codes=None, descriptors=None):
    return Features(
        ImageSet.without_positions(["a.jpg"] * len(descriptors if codes is None else codes)), codes, descriptors
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e5])
@pytest.mark.parametrize("stage", ["search", "rerank"])
@pytest.mark.parametrize("dtype", [np.float32, "disk"])
def test_descriptors_that_are_not_sound_are_refused_by_each_search(value, stage, dtype, tmp_path):
    """The last of 30, which is not among the nearest, but a candidate."""
    random = np.random.default_rng(0)
    database, queries = (random.standard_normal((count, 16)).astype(np.float32) for count in (30, 4))
    codes = random.integers(0, 256, (34, 64), dtype=np.uint8)
    database[29, 3] = value
    rows = disk_array(database, tmp_path / "database") if dtype == "disk" else database
    two_branch = stage == "rerank"
    features = features_of(codes[:30] if two_branch else None, rows)
    wanted = features_of(codes[30:] if two_branch else None, queries)
    with pytest.raises(InputError, match="NaN, infinity, or values beyond 10000, and cannot be searched"):
        search.search_and_rerank(features, wanted, 1, rerank_num=30 if two_branch else 0)


@pytest.mark.parametrize("kind", ["code", "descriptor"])
def test_a_database_of_one_and_the_same_code_or_descriptor_is_refused(kind, tmp_path):
    shape, dtype = ((40, 64), np.uint8) if kind == "code" else ((40, 16), np.float32)
    rows = np.full(shape, 3, dtype)

    def found(rows):
        features = features_of(**{f"{kind}s": rows})
        return search.search(features, features_of(**{f"{kind}s": np.full((2, shape[1]), 3, dtype)}), 3)

    for database in (rows, disk_array(rows, tmp_path / "rows")) if kind == "descriptor" else (rows,):
        with pytest.raises(InputError, match=f"All 40 images of the database have one and the same {kind}"):
            found(database)
    found(rows[: search.MIN_VARIED - 1])  # may be copies of one image
    rows[39, 0] = 4
    assert 39 not in found(rows).indices


def candidates_of(random, queries, count=12, database=30):
    """Made-up first-stage results."""
    distances = np.sort(random.integers(0, 512, (queries, count)), axis=1).astype(np.int32)
    indices = np.array([random.permutation(database)[:count] for _ in range(queries)])
    return SearchResult(distances, indices, ["hamming"] * count)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rerank_num", [1, 5, 12, 13, 100])  # 12 is k
@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rerank(seed, rerank_num, where, dtype, tmp_path):
    random = np.random.default_rng(seed)
    database = random.standard_normal((30, 16)).astype(dtype)
    queries = random.standard_normal((10, 16)).astype(np.float32)
    candidates = candidates_of(random, 10)
    given = [array.copy() for array in candidates[:2]]
    rows = disk_array(database, tmp_path / "database") if where == "disk" else database
    distances, predictions, metric = search.rerank(
        candidates, described(rows), described(queries), rerank_num=rerank_num
    )
    np.testing.assert_array_equal(candidates[:2], given)  # what it was given stays as it was
    for q in range(10):
        first = candidates.indices[q]
        head = sorted((naive_length(queries[q], database[i]), i) for i in first[:rerank_num])
        assert predictions[q].tolist() == [i for _, i in head] + first[rerank_num:].tolist()
        np.testing.assert_allclose(
            distances[q], [d for d, _ in head] + candidates.distances[q, rerank_num:].tolist(), rtol=1e-4
        )
    assert metric == ["l2"] * min(rerank_num, 12) + ["hamming"] * max(12 - rerank_num, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_database_on_disk_does_not_stay_in_memory(tmp_path):
    database = disk_array(np.ones((1 << 13, 1 << 10), np.float32), tmp_path / "database")  # 32 MiB
    queries = np.zeros((4, 1 << 10), np.float32)

    def resident():
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssFile")).split()[1])

    random, features = np.random.default_rng(0), described(database)
    search.rerank(candidates_of(random, 4), features, described(queries), rerank_num=12)
    before = resident()
    # This reads nearly all of it.
    search.rerank(candidates_of(random, 4, 8000, 8000), features, described(queries), rerank_num=8000)
    assert database[:].sum() == 1 << 23
    assert resident() - before < 1_000  # kB


@pytest.mark.parametrize(("mode", "metric"), [("float", "l2"), ("hashing", "hamming"), ("two-branch", "hamming")])
def test_search_takes_codes_where_there_are_any(mode, metric):
    random = np.random.default_rng(0)
    codes = None if mode == "float" else random.integers(0, 256, (9, 8), dtype=np.uint8)
    descriptors = None if mode == "hashing" else random.standard_normal((9, 4)).astype(np.float32)
    result = search.search(Features(None, codes, descriptors), Features(None, codes, descriptors), 3)
    assert result.metric == [metric] * 3 and result.indices[:, 0].tolist() == list(range(9))
    assert [len(part[0]) for part in result.first(2)[:2]] == [2, 2] and len(result.first(2).metric) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_pack_codes_is_packbits(seed):
    codes = np.random.default_rng(seed).choice([-1.0, 1.0], (7, 512)).astype(np.float32)
    packed = pack_codes(torch.from_numpy(codes))
    assert packed.dtype == torch.uint8
    np.testing.assert_array_equal(packed.numpy(), np.packbits(codes > 0, axis=1))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("values", [[1, 5, 10, 20], [20, 1, 10, 5], [3], [1000, 2]])
def test_recall(seed, values):
    random = np.random.default_rng(seed)
    predictions = np.array([random.permutation(60)[:20] for _ in range(25)])
    positives = [random.choice(60, random.integers(0, 5), replace=False) for _ in range(25)]
    positives[3] = np.array([], int)  # never right, and still counted
    correct = correct_predictions(predictions, positives)
    assert correct.tolist() == [
        [i in set(right.tolist()) for i in row] for row, right in zip(predictions.tolist(), positives, strict=True)
    ]
    recalls = recalls_at(correct, values)
    assert list(recalls) == values
    for n in values:
        hits = sum(any(row[:n]) for row in correct.tolist())
        assert recalls[n] == pytest.approx(100 * hits / 25)


def test_recall_without_any_positive_is_zero_and_printed_with_one_decimal():
    recalls = recalls_at(correct_predictions(np.zeros((3, 4), int), [np.array([], int)] * 3), [1, 10])
    assert recalls == {1: 0, 10: 0}
    assert format_recalls({1: 27.927, 5: 100.0}) == "R@1: 27.9, R@5: 100.0"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("values", [[1, 5, 10, 20], [20, 1, 10, 5], [3], [1000, 2]])
@pytest.mark.parametrize("k", [1, 4, 25])
def test_mean_average_precision_is_mapillarys(seed, values, k):
    random = np.random.default_rng(seed)
    predictions = np.stack([random.permutation(40)[:k] for _ in range(30)])
    positives = [random.permutation(40)[:count] for count in random.integers(0, 31, 30)]
    positives[3], positives[8] = np.array([], int), np.array([77])  # none, and one that no search can find
    correct = np.array([[i in set(p.tolist()) for i in row] for row, p in zip(predictions, positives, strict=True)])
    precisions = average_precision_at(correct, positives, values)
    assert list(precisions) == values
    for n in values:
        rows = [mapillary_apk(row.tolist(), p.tolist(), n) for row, p in zip(predictions, positives, strict=True)]
        assert precisions[n] == pytest.approx(100 * sum(rows) / 30, rel=1e-6, abs=1e-9)


def test_mean_average_precision_by_hand():
    correct = np.array([[True, False, True], [False, True, False], [False, False, False]])
    positives = [np.array([4, 9]), np.array([1, 2, 3, 5, 6]), np.array([], int)]
    # First query: at 1: 1 / 1; at 2: 1 / 2; at 3: (1 + 2/3) / 2. Second: 0 / 1; (1/2) / 2; (1/2) / 3. Third: 0.
    precisions = average_precision_at(correct, positives, [1, 2, 3])
    assert precisions[1] == pytest.approx(100 / 3)
    assert precisions[2] == pytest.approx(100 * (1 / 2 + 1 / 4) / 3)
    assert precisions[3] == pytest.approx(100 * (5 / 6 + 1 / 6) / 3)
