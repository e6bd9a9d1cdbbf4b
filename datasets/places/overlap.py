"""Photos of one cell that show the same thing, as a model sees it, where no headings tell."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
from tqdm import tqdm

from datasets.places.config import OwnPhotosConfig
from datasets.places.photos import PhotoFolder, load_photo
from model.errors import InputError
from utils.runtime.devices import AUTO, device

FAR = 200.0  # metres; two photos that are farther apart do not show the same thing
EXCEEDED = 0.999  # share of the pairs of far photos that are less alike than photos of one place
MIN_PAIRS, MAX_SAMPLE = 1000, 2000  # far pairs to take the threshold from; photos to take them of
BATCH = 64


def describe(photos: PhotoFolder, indices: Sequence[int], config: OwnPhotosConfig) -> np.ndarray:
    """Descriptors [n, dim] of length 1 of some of the photos, by config.model; of models without a float branch, codes.

    Raises InputError if there is no such model, or if a photo cannot be read.
    """
    from model.recognizer import PlaceRecognizer  # imports PyTorch

    assert config.model, "or photos are not divided"
    where = device(AUTO) if config.device == AUTO else config.device
    recognizer, remaining, found = PlaceRecognizer(config.model, device=where), iter(indices), []
    with tqdm(total=len(indices), desc="Describing", unit=" images", disable=None) as bar:
        while batch := list(islice(remaining, BATCH)):
            features = recognizer.describe(
                [load_photo(photos.images.paths[photos.photos[i].row], photos.photos[i]) for i in batch]
            )
            rows = features.descriptor
            if rows is None:
                assert features.code is not None, "a model has one of both"
                rows = np.unpackbits(features.code, axis=1) * 2.0 - 1
            found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
            bar.update(len(batch))
    return np.concatenate(found).astype(np.float32)


def similarity_threshold(descriptors: np.ndarray, places: np.ndarray) -> float:
    """The cosine that 99.9 % of the pairs of photos more than 200 m apart stay below.

    descriptors [n, dim]; places [n, 2] in metres. Raises InputError if there are too few such pairs.
    """
    sample = np.linspace(0, len(places) - 1, min(len(places), MAX_SAMPLE)).round().astype(int)
    places, descriptors = places[sample], descriptors[sample]
    is_far = np.linalg.norm(places[:, None] - places[None], axis=2) > FAR
    cosines = (descriptors @ descriptors.T)[np.triu(is_far)]
    if len(cosines) < MIN_PAIRS:
        raise InputError(
            f"--model: only {len(cosines)} pairs of photos are more than {FAR:g} m apart. {MIN_PAIRS} are needed to "
            "tell how alike photos of different places are. Give more photos, or leave --model out: then a place is "
            "what lies in one cell."
        )
    return float(np.quantile(cosines, EXCEEDED))


def divide_cells(
    cells: Sequence[Sequence[int]], descriptors: dict[int, np.ndarray], threshold: float
) -> dict[int, int]:
    """{photo: number within its cell} of what is alike: photos linked by pairs with at least this cosine."""
    numbers: dict[int, int] = {}
    for members in cells:
        rows = np.stack([descriptors[i] for i in members])
        numbers |= dict(zip(members, connected(rows @ rows.T >= threshold), strict=True))
    return numbers


def connected(linked: np.ndarray) -> list[int]:
    """The number of the component of each of n nodes, by first appearance. linked: bool [n, n], symmetric."""
    numbers = np.full(len(linked), -1)
    for start in range(len(linked)):
        if numbers[start] < 0:
            number, pending = numbers.max() + 1, np.zeros(len(linked), bool)
            pending[start] = True
            while pending.any():
                numbers[pending] = number
                pending = linked[pending].any(axis=0) & (numbers < 0)
    return numbers.tolist()
