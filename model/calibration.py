"""When to trust a first match: precision and recall over its distance, and thresholds that an evaluation calibrated."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError
from .files import read_regular

CALIBRATION = "calibration.json"  # its name in the folders of evaluations and indexes
MAX_BYTES = 1 << 26
PRECISIONS = {"95": 0.95, "99": 0.99, "100": 1.0}  # for which evaluations choose a threshold, by their percentage


class DistanceKind(NamedTuple):
    """What distances depend on. A threshold applies to those of the same kind.

    weights_sha256: of the model; image_size: (H, W) and antialias of the resizing; descriptor_dim: after PCA, if there
    was one, or the bits of a code; test_method: how queries are cut to size; metric: such as "l2" or "hamming".
    """

    weights_sha256: str
    image_size: tuple[int, int]
    antialias: bool
    descriptor_dim: int
    test_method: str
    metric: str


class Threshold(NamedTuple):
    """The largest distance up to which first matches have a precision, and the radius in metres around the places that
    `estimate_place` gives for them (see calibrated_radius; None if there were too few of them). queries: the number of
    queries within it, on which both rest.
    """

    distance: float
    radius: float | None
    queries: int


class Calibration(NamedTuple):
    """What an evaluation found out about the distances of first matches.

    source: the file; kind: of the distances; thresholds: {key of PRECISIONS: the threshold, or None if there is none}.
    """

    source: str
    kind: DistanceKind
    thresholds: dict[str, Threshold | None]

    @staticmethod
    def read(path: str | Path, kind: DistanceKind) -> "Calibration":
        """Reads calibration.json or results.json of an evaluation.

        Raises InputError if it is neither, or if it is about other distances than those of this kind.
        """
        try:
            content = json.loads(read_regular(path, MAX_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"Cannot read {path}: {error}. Expected {CALIBRATION} of an evaluation.") from None
        try:
            calibration = _parse(str(path), content)
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} holds no calibration: {error!r}. Expected {CALIBRATION}, or results.json, of an evaluation "
                "with labels. Evaluate again if an older version wrote it."
            ) from None
        pairs = zip(DistanceKind._fields, calibration.kind, kind, strict=True)
        changed = [f"{name} {theirs} (now {ours})" for name, theirs, ours in pairs if theirs != ours]
        if changed:
            raise InputError(
                f"{path} was calibrated on other distances: {', '.join(changed)}. Evaluate with the model and the "
                "settings that are used now, and take the file which that writes."
            )
        return calibration


def _parse(source: str, content: dict[str, Any]) -> Calibration:
    """Raises LookupError, TypeError or ValueError for what no evaluation writes."""
    first_match = content["first_match"]
    given = {**content, "metric": first_match["metric"], "image_size": tuple(content["image_size"])}
    points, count = {name: first_match["at_precision"][name] for name in PRECISIONS}, content["queries"]
    return Calibration(
        source=source,
        kind=DistanceKind(**{name: given[name] for name in DistanceKind._fields}),
        thresholds={name: None if point is None else _threshold(point, count) for name, point in points.items()},
    )


def _threshold(point: dict[str, Any], queries: int) -> Threshold:
    distance, radius, accepted = point["distance"], point["radius"], point["accepted"] * queries
    for value in (distance, 0 if radius is None else radius, accepted):
        if isinstance(value, bool) or not np.isfinite(value):
            raise ValueError(f"the number {value}")
    return Threshold(float(distance), None if radius is None else float(radius), round(accepted))


class PrecisionRecall(NamedTuple):
    """What accepting first matches up to a distance gives, for each of the T distinct distances, ascending.

    distance [T]; precision [T]: how many of the accepted matches are correct; recall [T]: how many of the correct
    matches are accepted, 0 if there are none; accepted [T]: how many of all queries are. Fractions, float64.
    """

    distance: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    accepted: np.ndarray

    @property
    def auc(self) -> float | None:
        """The area under the curve from recall 0, precision 1, by trapezoids. None if no first match is correct."""
        if self.recall[-1] == 0:
            return None
        recall, precision = np.append(0, self.recall), np.append(1, self.precision)
        return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())

    @property
    def recall_at_100_precision(self) -> float:
        """R@100P of VPR-Bench: the largest recall without a wrong match; 0 if the nearest one is wrong."""
        point = self.at_precision(1.0)
        return point["recall"] if point else 0.0

    def at_precision(self, precision: float) -> dict[str, float] | None:
        """The largest distance up to which at least this fraction of matches is correct, with the three fractions
        there. None if there is no such distance.
        """
        sufficient = np.flatnonzero(self.precision >= precision)
        return (
            {name: float(values[sufficient[-1]]) for name, values in self._asdict().items()}
            if len(sufficient)
            else None
        )


def precision_recall(distances: np.ndarray, correct: np.ndarray) -> PrecisionRecall:
    """distances [Q] of the first matches of Q > 0 queries, and whether they are correct [Q] (VPR-Bench, IJCV 2021).

    Equal distances are accepted together. A query without positives counts like any other.
    """
    order = distances.argsort(kind="stable")
    ascending = distances[order]
    last = np.append(ascending[1:] != ascending[:-1], True)  # of each run of equal distances
    accepted, hits = np.arange(1, len(order) + 1)[last], correct[order].cumsum()[last]
    return PrecisionRecall(ascending[last], hits / accepted, hits / max(hits[-1], 1), accepted / len(order))
