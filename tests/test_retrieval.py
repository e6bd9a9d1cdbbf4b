"""Search, re-ranking, packed codes and recall against naive loops on random input."""
import numpy as np
import pytest
import torch

from utils import retrieval
from utils.features import pack_codes
from utils.recall import correct_predictions, format_recalls, recalls_at

SEEDS = range(4)


def naive_hamming(database, queries, k):
    """Distances and numbers of the k nearest packed codes, by distance, then by number."""
    rows = []
    for query in queries:
        lengths = [sum((int(a) ^ int(b)).bit_count() for a, b in zip(query, code, strict=True)) for code in database]
        rows.append(sorted(zip(lengths, range(len(database)), strict=True))[:k])
    return np.array(rows)[..., 0], np.array(rows)[..., 1]


def naive_length(a, b):
    """L2 distance of two descriptors, in float64."""
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def naive_l2(database, queries, k):
    """Distances and numbers of the k nearest descriptors, in float64."""
    rows = []
    for query in queries:
        lengths = [naive_length(query, row) for row in database]
        rows.append(sorted(zip(lengths, range(len(database)), strict=True))[:k])
    return np.array(rows)[..., 0], np.array(rows)[..., 1].astype(int)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("code_bytes", [1, 8, 64])  # with 8 bits almost everything is a tie
def test_search_hamming(seed, code_bytes, monkeypatch):
    monkeypatch.setattr(retrieval, "QUERY_BLOCK", 5)
    random = np.random.default_rng(seed)
    database = random.integers(0, 256, (40, code_bytes), dtype=np.uint8)
    queries = np.concatenate([random.integers(0, 256, (10, code_bytes), dtype=np.uint8), database[3:5]])
    for k in (1, 7, 40):
        expected = naive_hamming(database, queries, k)
        distances, predictions = retrieval.search_hamming(database, queries, k, progress=False)
        np.testing.assert_array_equal(predictions, expected[1])
        np.testing.assert_array_equal(distances, expected[0])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threads", [2, 3])
def test_search_hamming_of_a_single_query_by_parts_of_the_database(seed, threads, monkeypatch):
    monkeypatch.setattr(retrieval, "LEAST_SPLIT_CODES", 5)
    monkeypatch.setattr(retrieval.faiss, "omp_get_max_threads", lambda: threads)
    calls = []
    knn = retrieval._knn_hamming
    monkeypatch.setattr(retrieval, "_knn_hamming", lambda *arguments: calls.append(arguments) or knn(*arguments))
    random = np.random.default_rng(seed)
    database, query = random.integers(0, 4, (43, 1), dtype=np.uint8), random.integers(0, 4, (1, 1), dtype=np.uint8)  # almost everything is a tie
    for k in (1, 20, 43):
        expected = naive_hamming(database, query, k)
        distances, predictions = retrieval.search_hamming(database, query, k, progress=False)
        np.testing.assert_array_equal(predictions, expected[1])
        np.testing.assert_array_equal(distances, expected[0])
    assert len(calls) == 3 * threads


@pytest.mark.parametrize("seed", SEEDS)
def test_an_inverted_file(seed):
    random = np.random.default_rng(seed)
    database = random.integers(0, 256, (400, 8), dtype=np.uint8)
    queries = database[:50] ^ (random.random((50, 8)) < 0.2).astype(np.uint8)
    index = retrieval.build_inverted_file(database, 8, progress=False)
    exact = naive_hamming(database, queries, 5)
    distances, predictions = retrieval.search_inverted_file(index, queries, 5, 8, progress=False)
    np.testing.assert_array_equal(distances, exact[0])  # it looked at every list
    for query, row, lengths in zip(queries, predictions, distances, strict=True):
        assert [int(np.bitwise_count(query ^ database[i]).sum()) for i in row] == lengths.tolist() and len(set(row.tolist())) == 5
    fewer, _ = retrieval.search_inverted_file(index, queries, 5, 1, progress=False)
    assert (fewer >= distances).all() and (fewer > distances).any()


def test_an_inverted_file_refuses_too_many_lists_and_too_few_probes():
    codes = np.random.default_rng(0).integers(0, 256, (40, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match="41 lists needs as many codes or more; the database has 40"):
        retrieval.build_inverted_file(codes, 41, progress=False)
    index = retrieval.build_inverted_file(codes, 8, progress=False)
    with pytest.raises(ValueError, match="NPROBE"):
        retrieval.search_inverted_file(index, codes[:4], 39, 1, progress=False)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block_rows", [1, 3, 7, 1000])
def test_search_float(seed, block_rows, monkeypatch):
    monkeypatch.setattr(retrieval, "DATABASE_BLOCK_BYTES", block_rows * 4 * 12)
    random = np.random.default_rng(seed)
    database, queries = random.standard_normal((30, 12)).astype(np.float32), random.standard_normal((9, 12)).astype(np.float32)
    for k in (1, 8, 30):
        expected = naive_l2(database, queries, k)
        distances, predictions = retrieval.search_float(database, queries, k, progress=False)
        np.testing.assert_array_equal(predictions, expected[1])
        np.testing.assert_allclose(distances, expected[0], rtol=1e-5)
        assert distances.dtype == np.float32


def test_search_float_reads_a_memory_mapped_database_for_many_queries(tmp_path):
    random = np.random.default_rng(5)
    database, queries = random.standard_normal((50, 12)).astype(np.float32), random.standard_normal((40, 12)).astype(np.float32)
    np.save(tmp_path / "database.npy", database)
    _, predictions = retrieval.search_float(np.load(tmp_path / "database.npy", mmap_mode="r"), queries, 3, progress=False)
    np.testing.assert_array_equal(predictions, naive_l2(database, queries, 3)[1])


def test_k_larger_than_the_database_gives_the_whole_database():
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (6, 8), dtype=np.uint8)
    descriptors = random.standard_normal((6, 8)).astype(np.float32)
    for distances, predictions in (retrieval.search_hamming(codes, codes[:4], 100, progress=False),
                                   retrieval.search_float(descriptors, descriptors[:4], 100, progress=False)):
        assert distances.shape == predictions.shape == (4, 6)
        assert [sorted(row) for row in predictions.tolist()] == [list(range(6))] * 4  # and no -1


@pytest.mark.parametrize("where", ["database", "queries"])
def test_search_float_never_answers_with_minus_one(where):
    """Descriptors that are not numbers (fp16 can overflow): faiss answers -1 for them, which NumPy takes for the last photo."""
    arrays = {"database": np.eye(6, dtype=np.float32), "queries": np.eye(6, dtype=np.float32)[:3] + 0.1}
    arrays[where][1] = np.nan
    try:
        _, predictions = retrieval.search_float(arrays["database"], arrays["queries"], 6, progress=False)
    except ValueError:  # to refuse them is as good
        return
    assert predictions.min() >= 0, predictions


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rerank_num", [1, 5, 12, 13, 100])  # 12 is k
def test_rerank(seed, rerank_num, monkeypatch):
    monkeypatch.setattr(retrieval, "RERANK_BLOCK", 4)
    random = np.random.default_rng(seed)
    database, queries = random.standard_normal((30, 16)).astype(np.float32), random.standard_normal((10, 16)).astype(np.float32)
    database /= np.linalg.norm(database, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    first = np.array([random.permutation(30)[:12] for _ in queries])
    hamming = np.sort(random.integers(0, 512, (10, 12)), axis=1).astype(np.int32)
    given = first.copy(), hamming.copy()
    distances, predictions = retrieval.rerank(hamming, first, database, queries, rerank_num, progress=False)
    np.testing.assert_array_equal((first, hamming), given)  # what it was given stays as it was
    for q in range(10):
        head = sorted((naive_length(queries[q], database[i]), i) for i in first[q, :rerank_num])
        assert predictions[q].tolist() == [i for _, i in head] + first[q, rerank_num:].tolist()
        np.testing.assert_allclose(distances[q], [d for d, _ in head] + hamming[q, rerank_num:].tolist(), rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threads", [1, 3, 4, 16])
@pytest.mark.parametrize("rerank_num", [1, 7, 12])
def test_rerank_of_fewer_queries_than_threads(seed, threads, rerank_num, monkeypatch):
    """Each query's candidates are spread over the threads: none is lost, and none is measured against another query."""
    monkeypatch.setattr(retrieval.faiss, "omp_get_max_threads", lambda: threads)
    random = np.random.default_rng(seed)
    database = random.standard_normal((30, 16)).astype(np.float32)
    for count in (1, 2):
        queries = random.standard_normal((count, 16)).astype(np.float32)
        first = np.array([random.permutation(30)[:12] for _ in queries])
        distances, predictions = retrieval.rerank(np.zeros((count, 12), np.int32), first, database, queries, rerank_num, progress=False)
        for q in range(count):
            head = sorted((naive_length(queries[q], database[i]), i) for i in first[q, :rerank_num])
            assert predictions[q].tolist() == [i for _, i in head] + first[q, rerank_num:].tolist()
            np.testing.assert_allclose(distances[q, :rerank_num], [d for d, _ in head], rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rerank_reads_a_memory_mapped_database_and_gives_its_pages_back(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(retrieval, "RERANK_BLOCK", 2)
    monkeypatch.setattr(retrieval, "RELEASE_BYTES", 100)
    random = np.random.default_rng(0)
    database, queries = random.standard_normal((30, 16)).astype(dtype), random.standard_normal((9, 16)).astype(np.float32)
    np.save(tmp_path / "database.npy", database)
    first = np.array([random.permutation(30)[:12] for _ in queries])
    distances, predictions = retrieval.rerank(np.zeros((9, 12), np.int32), first, np.load(tmp_path / "database.npy", mmap_mode="r"), queries, 12,
                                              progress=False)
    for q in range(9):
        expected = sorted((naive_length(queries[q], database[i]), i) for i in first[q])
        assert predictions[q].tolist() == [i for _, i in expected]
        np.testing.assert_allclose(distances[q], [length for length, _ in expected], rtol=1e-5)


def test_pages_given_back_leave_memory(tmp_path):
    np.save(tmp_path / "database.npy", np.ones((1 << 13, 1 << 10), np.float32))  # 32 MiB
    database = np.load(tmp_path / "database.npy", mmap_mode="r")

    def resident():
        return int(next(line for line in open("/proc/self/status") if line.startswith("RssFile")).split()[1])  # noqa: SIM115

    before = resident()
    assert database.sum() == 1 << 23
    held = resident()
    retrieval._release(database)
    assert held - before > 30_000 and resident() - before < 1_000  # kB


def test_rerank_keeps_the_first_stages_order_among_equals():
    database = np.eye(4, dtype=np.float32)[[0, 1, 1, 1, 0]]
    _, predictions = retrieval.rerank(np.arange(5)[None], np.array([[3, 0, 1, 4, 2]]), database, database[1:2], 5, progress=False)
    assert predictions.tolist() == [[3, 1, 2, 0, 4]]


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
    assert correct.tolist() == [[i in set(right.tolist()) for i in row] for row, right in zip(predictions.tolist(), positives, strict=True)]
    recalls = recalls_at(correct, values)
    assert list(recalls) == values
    for n in values:
        hits = sum(any(i in set(right.tolist()) for i in row[:n]) for row, right in zip(predictions.tolist(), positives, strict=True))
        assert recalls[n] == pytest.approx(100 * hits / 25)


def test_recall_without_any_positive_is_zero_and_printed_with_one_decimal():
    recalls = recalls_at(correct_predictions(np.zeros((3, 4), int), [np.array([], int)] * 3), [1, 10])
    assert recalls == {1: 0, 10: 0}
    assert format_recalls({1: 27.927, 5: 100.0}) == "R@1: 27.9, R@5: 100.0"
