"""Which first matches of a search to accept; other queries show a place that the index does not hold."""

from pathlib import Path
from typing import NamedTuple

from model.calibration import CALIBRATION, Calibration, DistanceKind
from model.config import CODE_BITS
from model.sequences import metric_of
from utils.retrieval.config import AcceptConfig, EngineAddress
from utils.retrieval.index import IndexMetadata


class Acceptance(NamedTuple):
    """The largest distance of a first match that is accepted, or None if none is; the radius of places that these give,
    if it is known; the file that says so, if it was not the user; and a line that tells the user.
    """

    max_distance: float | None
    radius: float | None
    source: str | None
    line: str

    def accepts(self, distance: float) -> bool:
        """Whether a first match at this distance is accepted."""
        return self.max_distance is not None and distance <= self.max_distance


def distance_kind(index: IndexMetadata, sequence: int) -> DistanceKind:
    """The kind of the distances that a search in an index gives, after re-ranking if there are descriptors, for
    sequences of so many frames.
    """
    return DistanceKind(
        weights_sha256=index.weights_sha256,
        image_size=index.image_config.resize,
        antialias=index.antialias,
        descriptor_dim=index.descriptor_dim or CODE_BITS,
        test_method="hard_resize",
        metric=metric_of("l2" if index.descriptor_dim else "hamming", sequence),
    )


def find_acceptance(config: AcceptConfig, kind: DistanceKind, index: Path | EngineAddress | None) -> Acceptance | None:
    """The threshold that the user states, or that of the file which the user names or the index has; else None.

    Raises InputError if the file is about other distances than those of this kind, or is no calibration.
    """
    if config.max_distance is not None:
        line = f"First matches up to {config.max_distance:g} ({kind.metric}) are accepted."
        return Acceptance(config.max_distance, None, None, line)
    file = config.file
    if file is None and isinstance(index, Path) and (index / CALIBRATION).exists():
        file = index / CALIBRATION
    if file is None:
        return None
    precision = config.precision or "99"
    threshold = Calibration.read(file, kind).thresholds[precision]
    if threshold is None:
        line = f"No match is accepted: {file} knows no distance up to which {precision} % of them are right."
        return Acceptance(None, None, str(file), line)
    limit = f"{threshold.distance:.4f} ({kind.metric})"
    line = (
        f"First matches up to {limit} are accepted: of {threshold.queries} queries, {precision} % are right in {file}."
    )
    return Acceptance(threshold.distance, threshold.radius, str(file), line)
