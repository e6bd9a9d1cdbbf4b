"""Losses and miner against naive double loops over the pairs, written from the papers' formulas."""

import math

import numpy as np
import pytest
import torch

from model import HashingOutput
from utils.training import losses
from utils.training.losses import float_losses, hashing_losses, mine_pairs, multi_similarity_loss, similarity_constraint

BATCHES = {
    "even": [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2],
    "uneven": [0, 0, 0, 0, 0, 1, 1, 2, 2, 2],
    "mixed up": [7, 3, 7, 9, 3, 7, 9],
    "with places of one photo": [4, 0, 0, 1, 1, 1, 5],
}
SEEDS = range(4)


def vectors(labels, seed, dim=12, spread=0.8):
    """Unit vectors [B, dim], float64: the photos of a place lie about its direction, all about a common one."""
    random = np.random.default_rng(seed)
    common, centres = random.standard_normal(dim), random.standard_normal((10, dim))
    x = 0.5 * common + centres[labels] + spread * random.standard_normal((len(labels), dim))
    return torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))


def binary_output(labels, seed, bits=64):
    """Logits [B, bits] and their signs, float64."""
    logits = vectors(labels, seed, bits, spread=1.5)
    return HashingOutput(logits, torch.where(logits >= 0, 1.0, -1.0).double())


def naive_cosines(x):
    """Cosine similarities [B, B] as a list of lists."""
    x = x.tolist()
    norms = [math.sqrt(sum(v * v for v in row)) for row in x]
    return [
        [sum(a * b for a, b in zip(x[i], x[j], strict=True)) / (norms[i] * norms[j]) for j in range(len(x))]
        for i in range(len(x))
    ]


def naive_mining(similarity, labels, epsilon=0.1):
    """Ordered pairs (i, j): positives less similar than the most similar negative + epsilon; negatives likewise."""
    positives, negatives = set(), set()
    for i in range(len(labels)):
        own = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        other = [j for j in range(len(labels)) if labels[j] != labels[i]]
        for j in own:
            if any(similarity[i][j] < similarity[i][k] + epsilon for k in other):
                positives.add((i, j))
        for j in other:
            if any(similarity[i][j] > similarity[i][k] - epsilon for k in own):
                negatives.add((i, j))
    return positives, negatives


def naive_multi_similarity(similarity, positives, negatives, alpha=1.0, beta=50.0, base=0.0):
    """Mean over all rows of both logarithms."""
    total = 0.0
    for i in range(len(similarity)):
        attraction = sum(math.exp(-alpha * (similarity[i][j] - base)) for a, j in positives if a == i)
        repulsion = sum(math.exp(beta * (similarity[i][j] - base)) for a, j in negatives if a == i)
        total += math.log(1 + attraction) / alpha + math.log(1 + repulsion) / beta
    return total / len(similarity)


def naive_constraint(logits, codes, pairs):
    """Mean over the pairs of (z_i . z_j - c_i . c_j / bits)^2."""
    z, c = logits.tolist(), codes.tolist()
    squares = []
    for i, j in pairs:
        real = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        binary = sum(a * b for a, b in zip(c[i], c[j], strict=True)) / len(c[i])
        squares.append((real - binary) ** 2)
    return sum(squares) / len(squares)


def mask(pairs, size):
    """Set of pairs -> [B, B] bool."""
    result = torch.zeros(size, size, dtype=torch.bool)
    for i, j in pairs:
        result[i, j] = True
    return result


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
def test_float_losses(labels, seed):
    x = vectors(labels, seed)
    similarity = naive_cosines(x)
    positives, negatives = naive_mining(similarity, labels)
    mined = mine_pairs(torch.tensor(similarity, dtype=torch.float64), torch.tensor(labels))
    assert torch.equal(mined[0], mask(positives, len(labels))) and torch.equal(mined[1], mask(negatives, len(labels)))
    expected = naive_multi_similarity(similarity, positives, negatives)
    assert multi_similarity_loss(torch.tensor(similarity, dtype=torch.float64), *mined).item() == pytest.approx(
        expected, rel=1e-12
    )

    result = float_losses(3 * x, torch.tensor(labels))  # cosines: the length does not count
    assert result.total.item() == result.multi_similarity.item() == pytest.approx(expected, rel=1e-12)
    assert result.constraint.item() == 0
    assert (int(result.positives), int(result.negatives)) == (len(positives), len(negatives))
    pairs = len(labels) * (len(labels) - 1)
    assert result.mined_pair_fraction.item() == pytest.approx((len(positives) + len(negatives)) / pairs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("labels", BATCHES.values(), ids=BATCHES)
def test_hashing_losses(labels, seed):
    output = binary_output(labels, seed)
    similarity = naive_cosines(output.code)
    positives, negatives = naive_mining(similarity, labels)
    constraint = naive_constraint(*output, positives | negatives)
    assert similarity_constraint(*output, mask(positives | negatives, len(labels))).item() == pytest.approx(
        constraint, rel=1e-10
    )
    result = hashing_losses(output, torch.tensor(labels))
    expected = naive_multi_similarity(similarity, positives, negatives)
    assert result.multi_similarity.item() == pytest.approx(expected, rel=1e-10)
    assert result.constraint.item() == pytest.approx(constraint, rel=1e-10)
    assert result.total.item() == pytest.approx(expected + 0.1 * constraint, rel=1e-10)
    assert (int(result.positives), int(result.negatives)) == (len(positives), len(negatives))


@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2, 3], [5, 5, 5], [2], [0, 0, 1, 1]],
    ids=["no place twice", "one place", "one photo", "far apart"],
)
def test_no_mined_pair_gives_loss_0_and_finite_gradients(labels):
    rows = torch.tensor([[1.0]])
    for _ in range(3):  # Hadamard's matrix: rows at right angles
        rows = torch.cat([torch.cat([rows, rows], dim=1), torch.cat([rows, -rows], dim=1)])
    x = rows[labels].requires_grad_()
    for result in (
        float_losses(x, torch.tensor(labels)),
        hashing_losses(HashingOutput(x / 8**0.5, x), torch.tensor(labels)),
    ):
        assert int(result.positives) == int(result.negatives) == 0
        assert result.total.item() == result.constraint.item() == result.mined_pair_fraction.item() == 0
        (gradient,) = torch.autograd.grad(result.total, x)
        assert torch.equal(gradient, torch.zeros_like(x))


def test_gradient_of_multi_similarity_by_finite_differences():
    labels = BATCHES["uneven"]
    similarity = torch.tensor(naive_cosines(vectors(labels, 1)), dtype=torch.float64, requires_grad=True)
    masks = mine_pairs(similarity.detach(), torch.tensor(labels))
    assert torch.autograd.gradcheck(lambda s: multi_similarity_loss(s, *masks), similarity)
    x = vectors(labels, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: float_losses(v, torch.tensor(labels)).total, x)
    logits, codes = (t.requires_grad_() for t in binary_output(labels, 1, bits=6))
    pairs = masks[0] | masks[1]
    assert torch.autograd.gradcheck(lambda z, c: similarity_constraint(z, c, pairs), (logits, codes))


def test_large_similarities_do_not_overflow():
    similarity = torch.ones(4, 4)
    masks = mine_pairs(similarity, torch.tensor([0, 0, 1, 1]))
    negatives = {(i, j) for i in range(4) for j in range(4) if i // 2 != j // 2}
    expected = naive_multi_similarity(similarity.tolist(), {(0, 1), (1, 0), (2, 3), (3, 2)}, negatives)
    assert multi_similarity_loss(similarity, *masks).item() == pytest.approx(expected, rel=1e-6)
    assert multi_similarity_loss(20 * similarity, *masks).isfinite()  # exp(1000) would not be


@pytest.fixture
def drawn_pairs(monkeypatch):
    """The pairs that hashing_losses hands to the constraint, for a fraction and a seed."""
    labels = torch.arange(12).repeat_interleave(4)
    output = binary_output((labels % 10).tolist(), 0)
    seen = []

    def constraint(logits, codes, pairs):
        seen.append(pairs)
        return similarity_constraint(logits, codes, pairs)

    monkeypatch.setattr(losses, "similarity_constraint", constraint)

    def draw(fraction, seed=0):
        result = hashing_losses(output, labels, pair_fraction=fraction, generator=torch.Generator().manual_seed(seed))
        return seen[-1], result, output

    return draw


def test_pair_fraction(drawn_pairs):
    everything, whole, output = drawn_pairs(1.0)
    assert int(everything.sum()) == int(whole.positives + whole.negatives) > 500
    for fraction in (0.25, 0.8):
        pairs, result, _ = drawn_pairs(fraction)
        assert not (pairs & ~everything).any()
        # Five standard deviations of a binomial count.
        spread = 5 * math.sqrt(fraction * (1 - fraction) / int(everything.sum()))
        assert abs(int(pairs.sum()) / int(everything.sum()) - fraction) < spread
        assert result.multi_similarity == whole.multi_similarity
        assert (result.positives, result.negatives) == (whole.positives, whole.negatives)
        assert result.constraint.item() == pytest.approx(naive_constraint(*output, pairs.nonzero().tolist()), rel=1e-10)


def test_pair_fraction_is_drawn_from_the_generator(drawn_pairs):
    torch.manual_seed(1)
    first = drawn_pairs(0.5, seed=3)[0]
    torch.manual_seed(2)
    assert torch.equal(drawn_pairs(0.5, seed=3)[0], first)
    assert not torch.equal(drawn_pairs(0.5, seed=4)[0], first)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_descriptors_that_are_not_finite_give_no_finite_loss(bad):
    """A model that has diverged must not look like one without pairs to learn from."""
    x = vectors(BATCHES["even"], 0)
    x[3, 2] = bad
    for broken in (x, torch.full_like(x, bad)):
        assert not float_losses(broken, torch.tensor(BATCHES["even"])).total.isfinite()
