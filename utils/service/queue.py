"""Images that wait to be described: those that arrive together are described together, by one thread."""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import NamedTuple

from model import Description, Prepared
from model.recognizer import BATCH

SMOOTHING = 0.1  # the weight of the latest batch in the mean time that an image takes


class Busy(Exception):
    """The queue is full. retry_after: whole seconds after which there is probably room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Too many images wait to be described. Try again in {retry_after} s.")
        self.retry_after = retry_after


class _Waiting(NamedTuple):
    image: Prepared
    described: "Future[Description]"


class DescriptionQueue:
    """Describes images with `describe`, which only the thread of this queue calls.

    length: images that may have a place at a time. Attributes: taken, places that are taken; images, batches: how many
    were described so far.
    """

    def __init__(self, describe: Callable[[list[Prepared]], Description], length: int) -> None:
        self._describe, self._length = describe, length
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._seconds = 0.0  # per image, the mean of the latest
        self.taken = self.images = self.batches = 0
        self._thread = threading.Thread(target=self._work, name="describe", daemon=True)
        self._thread.start()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, which an image needs before it is decoded. Raises Busy if all are taken."""
        with self._lock:
            if self.taken >= self._length:
                raise Busy(max(1, math.ceil(self.taken * self._seconds)))
            self.taken += 1
        try:
            yield
        finally:
            with self._lock:
                self.taken -= 1

    def describe(self, image: Prepared) -> "Future[Description]":
        """The features of an image, when its turn has come."""
        waiting = _Waiting(image, Future())
        self._waiting.put(waiting)
        return waiting.described

    def close(self) -> None:
        """Ends the thread after the images that wait already."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            batch = [self._waiting.get()]
            while len(batch) < BATCH and batch[-1] is not None and not self._waiting.empty():
                batch.append(self._waiting.get())  # no other thread takes from the queue
            is_open = batch[-1] is not None
            self._describe_together([waiting for waiting in batch if waiting is not None])

    def _describe_together(self, batch: list[_Waiting]) -> None:
        batch = [waiting for waiting in batch if waiting.described.set_running_or_notify_cancel()]
        if not batch:
            return
        start = time.perf_counter()
        try:
            found = self._describe([waiting.image for waiting in batch])
        except BaseException as error:  # of the model, which each of those who wait has to know
            for waiting in batch:
                waiting.described.set_exception(error)
            return
        seconds = (time.perf_counter() - start) / len(batch)
        self._seconds += (SMOOTHING if self.batches else 1) * (seconds - self._seconds)
        self.images, self.batches = self.images + len(batch), self.batches + 1
        for i, waiting in enumerate(batch):
            waiting.described.set_result(Description(*(None if part is None else part[i : i + 1] for part in found)))
