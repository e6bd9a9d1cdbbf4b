"""Crops of queries against naive loops and torchvision: the views, their mean, merged results, re-ranking."""

from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.oracles import described, naive_length
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from datasets.config import TEST_METHODS
from datasets.views import image_view
from model.errors import InputError
from utils.retrieval.config import CropConfig
from utils.retrieval.crops import average_crops, merge_crops
from utils.retrieval.features import SearchResult
from utils.retrieval.search import rerank

SEEDS = range(4)
CROP_METHODS = ("five_crops", "nearest_crop", "maj_voting")
SIZES = [(28, 42), (42, 28), (28, 28)]
IMAGES = [  # (height, width)
    (97, 61),  # 28 * 97 / 61 = 44.5: rounded down, not to the nearest
    (61, 98),
    (64, 64),
    (28, 42),  # already of the size
    (42, 28),
    (20, 90),  # 28 * 90 / 20 = 126, but (28 / 20) * 90 is 125.999... in floating point
    (183, 21),  # 28 * 183 / 21 = 244, but 28 * (183 / 21) is 243.999... in floating point
    (30, 120),
    (43, 42),
]


def noise(height, width, seed=0):
    """Noise: every pixel differs from its neighbours, so that a shift by one pixel shows."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ramp(height, width):
    """The red of a pixel is its column, the green its row."""
    pixels = [[(column, row, 0) for column in range(width)] for row in range(height)]
    return Image.fromarray(np.array(pixels, np.uint8))


def tensor_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def bilinear_weights(old, new, antialias):
    """[new, old] float64: a triangle around each new pixel, wider if the axis shrinks and antialias is on."""
    weights = np.zeros((new, old))
    scale = old / new
    for i in range(new):
        centre = (i + 0.5) * scale
        if antialias:
            radius = max(scale, 1.0)
            weights[i] = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centre) / radius)
            weights[i] /= weights[i].sum()
        else:
            position = min(max(centre - 0.5, 0.0), old - 1.0)
            left = int(position)
            weights[i, left] += 1 - (position - left)
            weights[i, min(left + 1, old - 1)] += position - left
    return weights


def naive_resize(image, size, antialias):
    """[3, H, W] float64 in [0, 1]."""
    pixels = np.array(image, np.float64) / 255
    rows = bilinear_weights(pixels.shape[0], size[0], antialias)
    columns = bilinear_weights(pixels.shape[1], size[1], antialias)
    return rows @ pixels.transpose(2, 0, 1) @ columns.T


def nearest_integer(value):
    return int(value + Fraction(1, 2))


def centre_offset(length, crop):
    """As torchvision's center_crop has it: halves are rounded to the even number."""
    offset, odd = divmod(length - crop, 2)
    return offset + (1 if odd and offset % 2 else 0)


def naive_view(image, method, size, antialias=True):
    """The specification of the views, one step after the other, in float64."""
    height, width = image.height, image.width
    shorter, longer = min(height, width), max(height, width)
    side = min(size)
    if method == "hard_resize":
        return naive_resize(image, size, antialias)
    if method == "single_query":
        length = 14 * nearest_integer(Fraction(side * longer, 14 * shorter))
        return naive_resize(image, (length, side) if height > width else (side, length), antialias)
    if method == "central_crop":
        scale = max(Fraction(size[0], height), Fraction(size[1], width))
        rows, columns = nearest_integer(height * scale), nearest_integer(width * scale)
        top, left = centre_offset(rows, size[0]), centre_offset(columns, size[1])
        resized = naive_resize(image, (rows, columns), antialias)
        return resized[:, top : top + size[0], left : left + size[1]]
    length = side * longer // shorter
    resized = naive_resize(image, (length, side) if height > width else (side, length), antialias)
    crops = []
    for offset in (0, centre_offset(length, side), length - side):
        window = slice(offset, offset + side)
        crops.append(resized[:, window] if height > width else resized[:, :, window])
    return np.stack(crops)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", TEST_METHODS)
def test_views_are_those_of_the_naive_implementation(method, size, antialias):
    for seed, (height, width) in enumerate(IMAGES):
        image = noise(height, width, seed)
        before = np.array(image)
        view = image_view(image, method, size, antialias)
        expected = naive_view(image, method, size, antialias)
        assert view.dtype == torch.float32 and view.shape == expected.shape, (height, width)
        np.testing.assert_allclose(view.numpy(), expected, rtol=0, atol=1e-4, err_msg=f"{height} x {width}")
        assert view.min() >= 0 and view.max() <= 1 + 1e-6
        np.testing.assert_array_equal(np.array(image), before)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", CROP_METHODS)
def test_three_crops_with_their_counts_are_torchvisions_five_crops(method, size, antialias):
    for seed, (height, width) in enumerate(IMAGES):
        image = noise(height, width, seed)
        resized = TF.resize(tensor_of(image), [min(size)], antialias=antialias)
        five = TF.five_crop(resized, [min(size), min(size)])
        start, centre, end = image_view(image, method, size, antialias)
        # torchvision's order: top left, top right, bottom left, bottom right, centre
        corners = [start, start, end, end] if height > width else [start, end, start, end]
        for crop, expected in zip([*corners, centre], five, strict=True):
            torch.testing.assert_close(crop, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", CROP_METHODS)
@pytest.mark.parametrize("extra", range(10))  # halves are rounded to the even number: up and down
def test_crops_of_an_image_of_the_right_size_are_slices_of_it(method, extra):
    centre = TF.center_crop(torch.arange(28.0 + extra).expand(1, 28, -1), [28, 28])[0, 0, 0]
    landscape = image_view(ramp(28, 28 + extra), method, (28, 42))
    portrait = image_view(ramp(28 + extra, 28), method, (42, 28))
    for crops, channel, row, column in ((landscape, 0, 0, 1), (portrait, 1, 1, 0)):
        for crop, offset in zip(crops, (0, int(centre), extra), strict=True):
            expected = np.add.outer(row * np.arange(28), column * np.arange(28)) + offset
            np.testing.assert_allclose(crop[channel].numpy() * 255, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("extra", range(10))
def test_the_central_crop_of_an_image_of_the_right_size_is_a_slice_of_it(extra):
    for image in (ramp(28, 42 + extra), ramp(28 + extra, 42)):
        expected = TF.center_crop(tensor_of(image), [28, 42])
        torch.testing.assert_close(image_view(image, "central_crop", (28, 42)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "size", "expected"),
    [
        ((60, 90), (28, 28), (28, 42)),
        ((90, 60), (28, 42), (42, 28)),
        ((50, 50), (42, 28), (28, 28)),
        ((40, 49), (28, 28), (28, 28)),  # 34.3 is nearer to 28
        ((40, 51), (28, 28), (28, 42)),  # 35.7 is nearer to 42
        ((64, 81), (28, 28), (28, 42)),  # 35.44: cut to 35, it would be as near to 28
        ((160, 201), (28, 28), (28, 42)),  # 35.175
        ((480, 640), (322, 322), (322, 434)),  # 429.3
        ((640, 480), (322, 448), (434, 322)),
    ],
)
def test_a_single_query_keeps_its_aspect_to_the_nearest_patch(image, size, expected):
    assert image_view(noise(*image), "single_query", size).shape == (3, *expected)


def five_lists(crops):
    """The lists of the benchmark's five crops from those of the start, the centre and the end."""
    start, centre, end = crops
    return [start, start, centre, end, end]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", SEEDS)
def test_average_crops_is_the_mean_of_five_and_is_not_normalised(seed, dtype):
    outputs = torch.nn.functional.normalize(
        torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1
    )
    before = outputs.clone()
    expected = torch.stack([sum(five_lists(crops)) / 5 for crops in outputs])
    average = average_crops(outputs)
    assert average.dtype == dtype and average.shape == (7, 16)
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    assert (average.norm(dim=-1) < 0.95).all()
    assert torch.equal(outputs, before)


def merge(result, method, k, weight=0.01):
    """The same with the settings of a method; only "maj_voting" uses the weight."""
    config = CropConfig(test_method=method, majority_weight=weight if method == "maj_voting" else None)
    return merge_crops(result, config, k, code_bits=512)


def test_majority_voting_needs_a_weight_and_the_others_have_none():
    for method, weight in (("maj_voting", None), ("nearest_crop", 0.01)):
        with pytest.raises(InputError, match="majority_weight"):
            CropConfig(test_method=method, majority_weight=weight)


class Search(NamedTuple):
    """How random results are drawn: K ranks, of which the first k remain, from a pool of database images."""

    K: int
    k: int
    pool: int
    noise: float  # how much the crops of a query differ


SEARCHES = [
    *(Search(K=20, k=20, pool=60, noise=0.3), Search(K=20, k=7, pool=30, noise=1.0), Search(K=1, k=1, pool=4, noise=1)),
    Search(K=20, k=20, pool=20, noise=0.1),  # each crop finds every image
    Search(K=12, k=5, pool=200, noise=3.0),  # hardly any image is found twice
    Search(K=7, k=7, pool=15, noise=0.3),  # fewer ranks than votes are cast for
]


def random_results(seed, metric, search, queries=5):
    """The results of 3 crops of each query; crops of a query resemble each other. Hamming distances have many ties."""
    random = np.random.default_rng([seed, *map(ord, metric), search.K, search.pool])
    distances, indices = [], []
    for _ in range(queries):
        pool = random.permutation(1000)[: search.pool]
        base = random.random(search.pool)
        for _ in range(3):
            lengths = base + search.noise * random.random(search.pool)
            if metric == "hamming":
                lengths = np.floor(8 * lengths)  # 0 to 10 or so, of up to 60 images
            else:
                lengths = np.sqrt(lengths / (1 + search.noise)).astype(np.float32)
            nearest = sorted(zip(lengths.tolist(), pool.tolist(), strict=True))[: search.K]
            distances.append([length for length, _ in nearest])
            indices.append([index for _, index in nearest])
    dtype = np.int32 if metric == "hamming" else np.float32
    return SearchResult(np.array(distances, dtype), np.array(indices, np.int64), [metric] * search.K)


def lists_of(result, query):
    """The five lists of (distance, index) of a query, as the benchmark has them."""
    crops = [
        list(zip(result.distances[row].tolist(), result.indices[row].tolist(), strict=True))
        for row in range(3 * query, 3 * query + 3)
    ]
    return five_lists(crops)


def naive_nearest_crop(lists, k):
    """Merged by distance, then by index; each image at its first occurrence."""
    merged = []
    for distance, index in sorted(entry for entries in lists for entry in entries):
        if index not in [i for _, i in merged]:
            merged.append((distance, index))
    return merged[:k]


def naive_votes(lists, metric, weight):
    """{image: (exact voted distance, all (distance, votes) that lead to it)} of the best occurrence of each image."""
    occurrences = []  # [distance, index, votes], list after list
    for entries in lists:
        for distance, index in entries:
            exact = Fraction(distance) ** 2 if metric == "l2" else Fraction(distance) / 128
            occurrences.append((exact, index, []))
    length = len(lists[0])
    for n in (1, 5, 10):
        among_the_first_n = [i for i in range(len(occurrences)) if i % length < n]
        counts = Counter(occurrences[i][1] for i in among_the_first_n)
        for i in among_the_first_n:
            _, index, votes = occurrences[i]
            if counts[index] > 1:
                votes.append((counts[index], n))
    best = {}
    for exact, index, votes in occurrences:
        voted = exact - sum(weight * Fraction(count, n) for count, n in votes)
        derivation = (exact, tuple(votes))
        if index not in best or voted < best[index][0]:
            best[index] = voted, {derivation}
        elif voted == best[index][0]:
            best[index][1].add(derivation)
    return best


def assert_voted(result, merged, k, weight):
    """Compares with the exact votes; only ties whose votes are computed alike must be in the order of their index."""
    metric = result.metric[0]
    queries = len(result.indices) // 3
    assert merged.metric == [{"l2": "squared_l2_voted", "hamming": "hamming_voted"}[metric]] * k
    assert merged.distances.shape == merged.indices.shape == (queries, k)
    assert merged.indices.dtype == np.int64 and merged.distances.dtype in (np.float32, np.float64)
    for query in range(queries):
        best = naive_votes(lists_of(result, query), metric, Fraction(str(weight)))
        distances, indices = merged.distances[query], merged.indices[query].tolist()
        expected = sorted((voted, index) for index, (voted, _) in best.items())[:k]
        np.testing.assert_allclose(distances, [float(voted) for voted, _ in expected], rtol=0, atol=2e-6)
        np.testing.assert_allclose(distances, [float(best[i][0]) for i in indices], rtol=0, atol=2e-6)
        assert len(set(indices)) == k
        groups = {}
        for index in best:
            if len(best[index][1]) == 1:
                groups.setdefault(next(iter(best[index][1])), []).append(index)
        for group in groups.values():
            returned = [index for index in indices if index in group]
            assert returned == sorted(group)[: len(returned)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("metric", ["l2", "hamming"])
def test_nearest_crop_merges_the_five_lists_by_distance(metric, search, seed):
    result = random_results(seed, metric, search)
    before = [array.copy() for array in result[:2]]
    merged = merge(result, "nearest_crop", k=search.k)
    assert merged.metric == [metric] * search.k
    assert merged.indices.dtype == np.int64 and merged.indices.shape == merged.distances.shape == (5, search.k)
    for query in range(5):
        expected = naive_nearest_crop(lists_of(result, query), search.k)
        assert merged.indices[query].tolist() == [index for _, index in expected]
        assert merged.distances[query].tolist() == [distance for distance, _ in expected]
    np.testing.assert_array_equal(result.distances, before[0])
    np.testing.assert_array_equal(result.indices, before[1])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("metric", ["l2", "hamming"])
def test_majority_voting_is_that_of_the_naive_implementation(metric, search, seed):
    result = random_results(seed, metric, search)
    before = [array.copy() for array in result[:2]]
    assert_voted(result, merge(result, "maj_voting", k=search.k), search.k, weight=0.01)
    for weight in (0.0, 0.001, 0.078125, 1.0):  # 0.078125 = 10 / 128: votes make many ties among Hamming distances
        merged = merge(result, "maj_voting", k=search.k, weight=weight)
        assert_voted(result, merged, search.k, weight)
    np.testing.assert_array_equal(result.distances, before[0])
    np.testing.assert_array_equal(result.indices, before[1])


@pytest.mark.parametrize("metric", ["l2", "hamming"])
def test_majority_voting_by_hand(metric):
    # Start: 4, 8. Centre: 8, 6. End: 6, 8. The five lists: 4 8, 4 8, 8 6, 6 8, 6 8.
    # n = 1: 4 twice, 6 twice, 8 once.       Votes of 4: 2/1; of 6: 2/1.
    # n = 5: 4 twice, 6 three times, 8 five times. Of 4: 2/5; of 6: 3/5; of 8: 5/5.
    # n = 10: the same counts.                Of 4: 2/10; of 6: 3/10; of 8: 5/10.
    # 8 never leads two lists: 1.5 in all. 4: 2.6. 6 at the first rank: 2.9; at the second rank of the centre: 0.9.
    distances = np.array([[32, 64], [48, 49], [64, 80]])
    indices = np.array([[4, 8], [8, 6], [6, 8]])
    if metric == "l2":  # of the same squares
        result = SearchResult(np.sqrt(distances / 128).astype(np.float32), indices, ["l2"] * 2)
    else:
        result = SearchResult(distances.astype(np.int32), indices, ["hamming"] * 2)
    voted = merge(result, "maj_voting", k=2, weight=0.1)
    # 4: 0.25 - 0.26. 8: 0.375 - 0.15 (centre). 6: 64 / 128 - 0.29 = 0.21 (end), 49 / 128 - 0.09 (centre).
    assert voted.indices.tolist() == [[4, 6]]
    np.testing.assert_allclose(voted.distances, [[-0.01, 0.21]], atol=1e-6)
    nearest = merge(result, "nearest_crop", k=2)
    assert nearest.indices.tolist() == [[4, 8]]
    np.testing.assert_array_equal(nearest.distances, [[result.distances[0, 0], result.distances[1, 0]]])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rerank_num", [1, 5, 12, 100])  # 12 is K
@pytest.mark.parametrize("count", [1, 3])
def test_rerank_by_the_nearest_of_several_crops(seed, rerank_num, count):
    random = np.random.default_rng(seed)
    database = random.standard_normal((30, 16)).astype(np.float32)
    queries = random.standard_normal((6, count, 16)).astype(np.float32)
    indices = np.stack([random.permutation(30)[:12] for _ in range(6)])
    candidates = SearchResult(np.sort(random.integers(0, 99, (6, 12), dtype=np.int32)), indices, ["hamming"] * 12)
    distances, predictions, metric = rerank(candidates, described(database), described(queries), rerank_num=rerank_num)
    assert distances.shape == predictions.shape == (6, 12)
    assert distances.dtype == np.float32 and predictions.dtype == np.int64
    assert metric == ["l2"] * min(rerank_num, 12) + ["hamming"] * max(12 - rerank_num, 0)
    for q in range(6):
        lengths = {i: min(naive_length(database[i], crop) for crop in queries[q]) for i in indices[q, :rerank_num]}
        head = sorted((length, i) for i, length in lengths.items())
        assert predictions[q].tolist() == [i for _, i in head] + indices[q, rerank_num:].tolist()
        expected = [length for length, _ in head] + candidates.distances[q, rerank_num:].tolist()
        np.testing.assert_allclose(distances[q], expected, rtol=1e-4)


def test_reranking_by_crops_keeps_the_first_stages_order_among_equals():
    database = np.eye(4, dtype=np.float32)[[0, 1, 1, 2, 0, 3]]
    candidates = SearchResult(np.arange(6)[None], np.array([[5, 3, 0, 1, 4, 2]]), ["hamming"] * 6)
    queries = np.eye(4, dtype=np.float32)[[1, 2, 1]][None]  # images 1, 2 and 3 equal one of the crops
    reranked = rerank(candidates, described(database), described(queries), rerank_num=6)
    assert reranked.indices.tolist() == [[3, 1, 2, 5, 0, 4]]
    np.testing.assert_allclose(reranked.distances, [[0, 0, 0, 2**0.5, 2**0.5, 2**0.5]], atol=1e-6)
