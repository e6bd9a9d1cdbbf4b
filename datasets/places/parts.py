"""Training, validation and test apart from each other on the ground."""

import numpy as np

TRAIN, VAL, TEST, BORDER = "train", "val", "test", "border"
MARGIN = 50.0  # metres between two parts: twice the distance up to which evaluations count an image as a positive
OUTLIERS = 0.02  # of the photos, at each end, which do not decide along which axis to cut


def divide_by_area(places: np.ndarray, cells: np.ndarray, *, val: float, test: float) -> np.ndarray:
    """The part [N] of each photo: one of TRAIN, VAL, TEST and BORDER, which is left out between two others.

    places [N, 2]: metres east and north. cells [N]: the number of each photo's cell. The area is cut across its longer
    side, so that the fractions `val` and `test` of the cells lie at its two ends: a burst of photos counts once. Photos
    of different parts are at least MARGIN apart.
    """
    parts = np.full(len(places), TRAIN, dtype="<U6")
    low, high = np.quantile(places, [OUTLIERS, 1 - OUTLIERS], axis=0)
    along = places[:, int((high - low).argmax())]
    _, first = np.unique(cells, return_index=True)
    for name, fraction, sign in ((VAL, val, 1), (TEST, test, -1)):
        if fraction:
            beyond = sign * (np.quantile(along[first], fraction if sign > 0 else 1 - fraction) - along)
            parts[beyond > -MARGIN] = BORDER
            parts[beyond >= 0] = name
    return parts
