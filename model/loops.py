"""Loops: images of a sequence that show a place which an earlier image showed, or one of another sequence."""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np

from .config import LoopConfig
from .rows import Snapshot, search


class Loop(NamedTuple):
    """The same place at two moments: the ids of a later and an earlier image, or of images of two sequences; and the
    distance of the two.
    """

    id: int
    earlier: int
    distance: float


def find_loops(
    snapshot: Snapshot, rows: Iterable[int], config: LoopConfig, *, rerank_num: int, among: np.ndarray | None = None
) -> list[Loop]:
    """The loops of these rows, in their order; rerank_num as for `search`.

    among: bool [N], the rows of another sequence, to be searched in place of those before each row.
    """
    ids = snapshot.ids
    loops = list[Loop]()
    for row in rows:
        candidates = ids <= ids[row] - config.min_gap if among is None else among
        found = search(snapshot, snapshot.features(row), config.k, rerank_num=rerank_num, among=candidates)
        loops += [
            Loop(int(ids[row]), int(ids[earlier]), distance)
            for earlier, distance in zip(found.rows.tolist(), found.distances.tolist(), strict=True)
            if distance <= config.max_distance
        ]
    return suppress_loops(loops, config.suppress)


def suppress_loops(loops: Iterable[Loop], suppress: int) -> list[Loop]:
    """The loops that are the nearest ones around: non-maximum suppression, as LoopConfig says. In the order of ids.

    Takes linear time. Of a square of `suppress` x `suppress` rows, at most one loop stays, so that a loop needs to be
    compared with one loop of its square and of each of those around.
    """
    if suppress == 0:
        return sorted(loops)
    kept: dict[tuple[int, int], Loop] = {}
    for loop in sorted(loops, key=lambda loop: loop.distance):
        row, column = loop.id // suppress, loop.earlier // suppress
        around = (kept.get((row + i, column + j)) for i, j in product((-1, 0, 1), repeat=2))
        if not any(o and abs(loop.id - o.id) < suppress and abs(loop.earlier - o.earlier) < suppress for o in around):
            kept[row, column] = loop
    return sorted(kept.values())
