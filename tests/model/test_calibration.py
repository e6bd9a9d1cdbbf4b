"""Precision and recall over the distance of first matches, and files of thresholds."""

import json

import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve

from model import InputError
from model.calibration import PRECISIONS, Calibration, DistanceKind, Threshold, precision_recall
from utils.retrieval.config import ACCEPT_PRECISIONS

KIND = DistanceKind("ab12", (56, 70), True, 512, "hard_resize", "l2")
CONTENT = {
    **KIND._asdict(),
    "first_match": {
        "metric": "l2",
        "at_precision": {
            "95": {"distance": 0.7, "radius": 12, "accepted": 0.3},
            "99": {"distance": 0, "radius": None, "accepted": 0.1},
            "100": None,
        },
    },
    "queries": 70,
}


def test_the_flag_offers_the_precisions_of_the_thresholds():
    assert tuple(PRECISIONS) == ACCEPT_PRECISIONS


def test_thresholds_are_read_from_a_file(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(CONTENT))
    found = Calibration.read(tmp_path / "c.json", KIND)
    assert found.thresholds == {"95": Threshold(0.7, 12.0, 21), "99": Threshold(0.0, None, 7), "100": None}
    assert found.kind == KIND


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "Cannot read"),
        ("{", "Cannot read"),
        ("[]", "holds no calibration"),
        ("[" * 100_000, "Cannot read"),
        ("{}", "holds no calibration: KeyError"),
        (json.dumps({**CONTENT, "first_match": {"metric": "l2", "at_precision": {}}}), "holds no calibration"),
        (json.dumps(CONTENT).replace("0.7", "NaN"), "holds no calibration: .*the number nan"),
        (json.dumps(CONTENT).replace("0.7", '"near"'), "holds no calibration"),
        (json.dumps(CONTENT).replace("0.7", "true"), "holds no calibration"),
        (json.dumps(CONTENT).replace('"radius": 12', '"radius": Infinity'), "holds no calibration"),
        (json.dumps({**CONTENT, "antialias": False}), r"other distances: antialias False \(now True\)"),
    ],
)
def test_what_is_no_calibration_of_these_distances_is_explained(tmp_path, content, words):
    if content is not None:
        (tmp_path / "c.json").write_text(content)
    with pytest.raises(InputError, match=words):
        Calibration.read(tmp_path / "c.json", KIND)


def random_matches(seed):
    """Distances, with ties, and whether they are correct: more often if near."""
    random = np.random.default_rng(seed)
    distances = random.integers(0, 30, 200).astype(float)
    return distances, random.uniform(0, 30, 200) > distances


@pytest.mark.parametrize("seed", range(4))
def test_precision_and_recall_are_those_counted_at_each_threshold(seed):
    distances, correct = random_matches(seed)
    curve = precision_recall(distances, correct)
    assert curve.distance.tolist() == sorted(set(distances))
    for i, threshold in enumerate(curve.distance):
        accepted = [bool(c) for d, c in zip(distances, correct, strict=True) if d <= threshold]
        assert curve.precision[i] == pytest.approx(sum(accepted) / len(accepted))
        assert curve.recall[i] == pytest.approx(sum(accepted) / sum(correct))
        assert curve.accepted[i] == pytest.approx(len(accepted) / 200)


@pytest.mark.parametrize("seed", range(4))
def test_curve_and_area_are_those_of_scikit_learn(seed):
    distances, correct = random_matches(seed)
    curve = precision_recall(distances, correct)
    precision, recall, thresholds = precision_recall_curve(correct, -distances)
    assert curve.auc == pytest.approx(auc(recall, precision))
    by_threshold = dict(zip(-thresholds, zip(precision, recall, strict=False), strict=False))
    for threshold, *expected in zip(curve.distance, curve.precision, curve.recall, strict=True):
        if threshold in by_threshold:  # older versions leave out those beyond full recall
            assert by_threshold[threshold] == pytest.approx(tuple(expected))


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.95, 0.99])
def test_the_threshold_is_the_largest_distance_that_keeps_the_precision(precision):
    for seed in range(6):
        distances, correct = random_matches(seed)
        good = [t for t in distances if correct[distances <= t].mean() >= precision]
        point = precision_recall(distances, correct).at_precision(precision)
        assert (point["distance"] == max(good)) if good else point is None


def test_without_a_correct_match_there_is_no_area_and_no_threshold():
    curve = precision_recall(np.array([0.1, 0.2]), np.array([False, False]))
    assert curve.auc is None and curve.at_precision(0.95) is None


def test_with_correct_matches_only_everything_is_accepted():
    curve = precision_recall(np.array([0.3, 0.1, 0.1]), np.array([True, True, True]))
    assert curve.auc == 1
    assert curve.at_precision(0.99) == {"distance": 0.3, "precision": 1, "recall": 1, "accepted": 1}


@pytest.mark.parametrize("seed", range(6))
def test_recall_at_full_precision_is_the_share_of_right_matches_before_the_first_wrong_one(seed):
    distances, correct = random_matches(seed)
    nearest_wrong = distances[~correct].min()
    expected = (correct & (distances < nearest_wrong)).sum() / correct.sum()
    assert precision_recall(distances, correct).recall_at_100_precision == pytest.approx(expected)
    assert precision_recall(distances, np.zeros(200, bool)).recall_at_100_precision == 0
