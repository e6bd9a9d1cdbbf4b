"""What the service does for each request."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Path, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from starlette.datastructures import UploadFile

from datasets.layouts import find_images
from model import Description, InputError, Prepared
from model.image_files import open_image
from utils.retrieval.report.page import choose_evenly
from utils.retrieval.report.thumbnails import jpeg_thumbnail
from utils.service.answers import AddedAnswer, HealthAnswer, SearchAnswer
from utils.service.config import ServiceConfig
from utils.service.errors import CANNOT_SEARCH
from utils.service.frames import NewestFrame
from utils.service.library import CannotSearch, Details, FolderLibrary, Library
from utils.service.metrics import Metrics, resident_bytes
from utils.service.page import Html, programs_page, search_page
from utils.service.queue import Busy, DescriptionQueue

T = TypeVar("T")
MAX_MATCHES = 1000  # of an answer
MAX_EXAMPLES = 9
MAX_THREADS = 4  # that decode, search and write: each may hold an image of max_pixels
REFRESH_SECONDS = 1.0  # between two looks at the index
THUMBNAIL_SIZE = (320, 240)  # (width, height) in pixels that a thumbnail does not exceed
NO_IMAGE = "The request has no image. Send one as the body, or as a file of a form."
ImageId = Annotated[int, Path(ge=0, lt=2**62, description="of a match")]
ExampleNumber = Annotated[int, Path(ge=0)]
Number = Annotated[float | None, Query(allow_inf_nan=False)]


class Service:
    """Answers requests from a library. Images are decoded and searched by several threads, and described by one.

    Raises InputError if the folder of examples has no images.
    """

    def __init__(self, library: Library, config: ServiceConfig) -> None:
        self.library, self.config, self.metrics = library, config, Metrics()
        self.dropped_frames = 0
        self._page: tuple[object, Html] | None = None  # the state of the library, and its page
        describe: Callable[[list[Prepared]], Description] = library.recognizer.describe
        found = find_images([str(config.examples)]) if config.examples else []
        self.examples = [found[i] for i in choose_evenly(np.arange(len(found)), MAX_EXAMPLES)]
        self.queue = DescriptionQueue(describe, config.queue)
        self._threads = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="service")

    async def search(
        self,
        request: Request,
        k: Annotated[int, Query(ge=1, le=MAX_MATCHES, description="matches")] = 5,
        max_distance: Annotated[
            float | None,
            Query(ge=0, allow_inf_nan=False, description="up to which first matches are accepted; else as calibrated"),
        ] = None,
    ) -> SearchAnswer:
        """Find the place of an image: the best matches, and where it was probably taken."""
        clock = _Clock()
        data = await read_image(request)
        clock.stop("receive")
        return await self._find(data, k, max_distance, clock=clock)

    async def frames(
        self,
        socket: WebSocket,
        k: Annotated[int, Query(ge=1, le=MAX_MATCHES)] = 5,
        max_distance: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
    ) -> None:
        """Find the places of the frames of a camera: each message is an image, each answer that of a search with
        `frame`, the number of the message, and `dropped`, how many frames were passed over so far, since a newer one
        had arrived when their turn came.
        """
        await socket.accept()
        newest = NewestFrame(self._note_drop)
        receiving = asyncio.create_task(newest.receive_from(socket))
        try:
            while (frame := await newest.take()) is not None:
                content: dict[str, Any] = {"frame": frame.number, "dropped": newest.dropped}
                try:
                    content |= (await self._find(frame.data, k, max_distance, clock=_Clock())).model_dump()
                except (InputError, Busy) as error:
                    content["error"] = str(error)
                except CannotSearch:
                    content["error"] = CANNOT_SEARCH
                await socket.send_json(content)
        except WebSocketDisconnect:
            logging.debug("A client has gone away.")
        finally:
            receiving.cancel()

    async def add(
        self,
        request: Request,
        name: Annotated[str | None, Query(min_length=1, max_length=1000)] = None,
        easting: Number = None,
        northing: Number = None,
        time: Number = None,
    ) -> AddedAnswer:
        """Add an image to the index. The answer comes when it is on the disk; the image itself is not kept. easting,
        northing: in metres; time: in seconds.
        """
        assert isinstance(self.library, FolderLibrary), "no other is writable"
        library = self.library
        if (easting is None) != (northing is None):
            raise HTTPException(400, "A position has an easting and a northing. Give both, or none.")
        if name and os.path.isabs(name):
            raise HTTPException(400, "The name is an absolute path, which is that of a file. Give another one.")
        position = None if easting is None or northing is None else (easting, northing)
        details = Details(name=name, position=position, time=time)
        data = await read_image(request)
        with self.queue.place():
            description = await self._describe(data, _Clock())
            return AddedAnswer(id=await self._in_thread(lambda: library.add(description, details)))

    async def remove(self, id: ImageId) -> Response:
        """Take an image out of the index. Its file stays."""
        assert isinstance(self.library, FolderLibrary), "no other is writable"
        library = self.library
        try:
            await self._in_thread(lambda: library.remove(id))
        except InputError as error:
            raise HTTPException(404, str(error)) from error
        return Response(status_code=204)

    async def page(self) -> HTMLResponse:
        """The page that searches."""
        return _html(await self._in_thread(self._search_page))

    async def programs(self, request: Request) -> HTMLResponse:
        """What there is for programs."""
        return _html(programs_page(request.app.openapi(), str(request.base_url).rstrip("/")))

    async def example(self, i: ExampleNumber) -> FileResponse:
        """The file of an example."""
        return FileResponse(self._example(i))

    async def example_thumbnail(self, i: ExampleNumber) -> Response:
        """A small JPEG of an example."""
        file = self._example(i)
        return await self._thumbnail(file, f"The file of example {i} cannot be read.")

    async def thumbnail(self, id: ImageId) -> Response:
        """A small JPEG of an image of the index."""
        try:
            file = await self._in_thread(lambda: self.library.image_file(id))
        except InputError as error:
            raise HTTPException(404, str(error)) from error
        if file is None:
            raise HTTPException(404, f"The index knows no file of image {id}: it was added as pixels.")
        return await self._thumbnail(file, f"The file of image {id} cannot be read any more.")

    async def health(self) -> HealthAnswer:
        """Whether the service is well."""
        status = "stale" if self.library.problem else "ok"
        return HealthAnswer(status=status, images=len(self.library))

    async def show_metrics(self) -> PlainTextResponse:
        """Requests, times, the size of the index and the memory of the process, for Prometheus."""
        gauges = {
            "index_images": len(self.library),
            "index_reopened_total": self.library.reopened,
            "queue_images": self.queue.taken,
            "queue_length": self.config.queue,
            "described_images_total": self.queue.images,
            "described_batches_total": self.queue.batches,
            "dropped_frames_total": self.dropped_frames,
            **resident_bytes(),
        }
        return PlainTextResponse(self.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """While the service runs, it notices changes of the index; at the end, it finishes what was begun."""
        refreshing = asyncio.create_task(self._refresh())
        try:
            yield
        finally:
            refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await refreshing
            self.close()

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown()
        self.queue.close()

    def _note_drop(self) -> None:
        self.dropped_frames += 1

    def _example(self, i: int) -> str:
        if i >= len(self.examples):
            raise HTTPException(404, f"There are {len(self.examples)} examples.")
        return self.examples[i]

    async def _thumbnail(self, file: str, problem: str) -> Response:
        """Raises HTTPException, which says nothing of the file, if it cannot be read."""
        try:
            data = await self._in_thread(lambda: jpeg_thumbnail(file, THUMBNAIL_SIZE, exif_orientation=True))
        except InputError as error:
            logging.debug("No thumbnail: %s", error)
            raise HTTPException(404, problem) from error
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

    async def _find(self, data: bytes, k: int, max_distance: float | None, *, clock: "_Clock") -> SearchAnswer:
        """Raises Busy, and InputError for what is no image."""
        with self.queue.place():
            description = await self._describe(data, clock)
            found = await self._in_thread(lambda: self.library.find(description, k, max_distance))
        clock.stop("search")
        return SearchAnswer.of(found, clock.seconds, show_paths=self.config.show_paths)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self._in_thread(self.library.refresh)

    async def _describe(self, data: bytes, clock: "_Clock") -> Description:
        prepared = await self._in_thread(lambda: self._prepare(data))
        clock.stop("prepare")
        description = await asyncio.wrap_future(self.queue.describe(prepared))
        clock.stop("describe")
        return description

    def _prepare(self, data: bytes) -> Prepared:
        with open_image(data) as image:
            if image.width * image.height > self.config.max_pixels:
                raise InputError(
                    f"it has {image.width} x {image.height} pixels. At most {self.config.max_pixels:,} are read. "
                    "Scale it down."
                )
        return self.library.recognizer.prepare(data)

    def _search_page(self) -> Html:
        """The page, made again when the images have changed: its map is not made for each request."""
        state = self.library.state
        if self._page is None or self._page[0] != state:
            self._page = state, search_page(self.library.known(), len(self.library), len(self.examples))
        return self._page[1]

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


async def read_image(request: Request) -> bytes:
    """The image that a request brings: its body, or the first file of a form. Raises HTTPException if there is none."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async with request.form(max_files=1, max_fields=8) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            data = await files[0].read() if files else b""
    else:
        data = await request.body()
    if not data:
        raise HTTPException(400, NO_IMAGE)
    return data


def _html(page: Html) -> HTMLResponse:
    return HTMLResponse(page.content, headers=page.headers)


class _Clock:
    """The seconds that the parts of an answer take, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part], self._last = round(now - self._last, 6), now
