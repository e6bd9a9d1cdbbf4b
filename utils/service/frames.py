"""The newest frame of a camera: what arrives while another one is searched takes the place of what waits."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from fastapi import WebSocket, WebSocketDisconnect


class Frame(NamedTuple):
    """An image, and its number among the messages of its connection."""

    number: int
    data: bytes


class NewestFrame:
    """Holds one frame: the latest that has arrived and was not taken. dropped: how many newer ones have replaced;
    note_drop is called for each.
    """

    def __init__(self, note_drop: Callable[[], None]) -> None:
        self.dropped = 0
        self._note_drop = note_drop
        self._frame: Frame | None = None
        self._is_open = True
        self._changed = asyncio.Event()

    async def receive_from(self, socket: WebSocket) -> None:
        """Receives frames until the client goes away."""
        number = 0
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                if self._frame is not None:
                    self.dropped += 1
                    self._note_drop()
                self._frame = Frame(number, message.get("bytes") or b"")
                number += 1
                self._changed.set()
        except WebSocketDisconnect:
            return
        finally:
            self._is_open = False
            self._changed.set()

    async def take(self) -> Frame | None:
        """The newest frame, when there is one; None when the client has gone away, and the last one was taken."""
        while self._frame is None and self._is_open:
            self._changed.clear()
            await self._changed.wait()
        frame, self._frame = self._frame, None
        return frame
