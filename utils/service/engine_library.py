"""An index in a search engine that a service answers from."""

import os
import threading

import numpy as np

from datasets.image_set import ImageSet
from model import Description, InputError, Known, Match, PlaceRecognizer
from model.places import MATCHES
from utils.retrieval.acceptance import distance_kind, find_acceptance
from utils.retrieval.config import AcceptConfig, EngineAddress
from utils.retrieval.features import Features
from utils.retrieval.index.engines import engine_of
from utils.retrieval.matches import estimate_places, list_matches
from utils.retrieval.report.page import choose_evenly
from utils.retrieval.search import search_and_rerank
from utils.service.library import CannotSearch, Found, Library

MAX_KNOWN = 16_384  # images that the map shows: those of a larger index are chosen evenly


class EngineLibrary(Library):
    """An index in a search engine. One search is in progress at a time."""

    def __init__(
        self, address: EngineAddress, model: str | None, accept: AcceptConfig, *, device: str, rerank_num: int
    ) -> None:
        """Raises InputError if there is no such index, its model is not there, or `accept` names a threshold that it
        cannot have.
        """
        self._index = engine_of(address).open_index(address)
        metadata = self._index.metadata
        self.recognizer = PlaceRecognizer.of_kind(
            metadata, address, model, device=device, rerank_num=rerank_num, projections=self._index.projections
        )
        self._acceptance = find_acceptance(accept, distance_kind(metadata, 1), None)
        if self._acceptance and self._acceptance.max_distance is None:
            raise InputError(self._acceptance.line)
        self._address, self._searching = address, threading.Lock()

    def find(self, description: Description, k: int, max_distance: float | None) -> Found:
        """As Library. A search that meets a change of the index is repeated once."""
        with self._searching:
            if not self.problem:
                try:
                    return self._find(description, k, max_distance)
                except InputError:
                    self._refresh()
            if not self.problem:
                try:
                    return self._find(description, k, max_distance)
                except InputError as error:
                    self._note(error, "A search failed")
            raise CannotSearch

    def refresh(self) -> None:
        """As Library."""
        with self._searching:
            self._refresh()

    def known(self) -> Known:
        """As Library."""
        with self._searching:
            rows = choose_evenly(np.arange(len(self)), MAX_KNOWN)
            images = self._index.images
            unknown = np.full(len(rows), np.nan)
            try:
                return Known(
                    self._index.ids_of(rows), images.utms[rows], images.degrees[rows], unknown, images.zones[rows]
                )
            except InputError as error:
                raise CannotSearch from error

    def image_file(self, i: int) -> str | None:
        """As Library. A name that is no absolute path is that of an image that was added as pixels."""
        with self._searching:
            (row,) = self._index.images_of(np.array([i])).tolist()
            if row < 0:
                raise InputError(f"There is no image {i}.")
            try:
                path = str(self._index.images.paths[row])
            except InputError as error:
                raise CannotSearch from error
        return path if os.path.isabs(path) else None

    @property
    def state(self) -> object:
        """As Library."""
        return self.reopened

    def __len__(self) -> int:
        return len(self._index)

    def _find(self, description: Description, k: int, max_distance: float | None) -> Found:
        """Raises InputError where the engine does not answer as it should."""
        images, depth = self._index.images, max(k, MATCHES)
        queries = Features(ImageSet.without_positions([""]), description.code, description.descriptor)
        rerank_num = 0 if description.descriptor is None else max(depth, self.recognizer.rerank_num)
        results = search_and_rerank(self._index.features(), queries, depth, rerank_num=rerank_num)[-1].first(depth)
        stated = self._acceptance if max_distance is None else None
        limit = stated.max_distance if stated else max_distance
        [place] = estimate_places(results, images, stated.radius if stated else None)
        [found] = list_matches(results.first(k), images)
        matches = [
            Match(
                id=i,
                distance=match.distance,
                metric=match.metric,
                name=match.path,
                position=_pair(match.easting, match.northing),
                time=None,
                degrees=_pair(match.latitude, match.longitude),
            )
            for i, match in zip(self._index.ids_of(results.indices[0, :k]).tolist(), found, strict=True)
        ]
        is_unknown = limit is not None and matches[0].distance > limit
        return Found(matches, None if is_unknown else place, limit)

    def _refresh(self) -> None:
        try:
            if self._index.has_changed():
                opened = engine_of(self._address).open_index(self._address)
                opened.metadata.require_compatible(self._index.metadata, self._address)
                self._index = opened
                self.reopened += 1
            self.problem = None
        except InputError as error:
            self._note(error, "The index cannot be reached, or opened again")


def _pair(first: float | None, second: float | None) -> tuple[float, float] | None:
    return None if first is None or second is None else (first, second)
