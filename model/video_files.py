"""Frames of videos, which are named like images: trip.mp4#t=12.40 is the frame 12.40 seconds after the start.

Reading them needs PyAV and Pillow, which are imported when a video is opened: `--help` needs neither.
"""

import bisect
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError

if TYPE_CHECKING:
    from PIL import Image

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
FRAME_NAME = re.compile(rf"(.+(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))#t=(\d+(?:\.\d+)?)", re.I | re.DOTALL)
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm"  # of FFmpeg; a playlist would open other files, or the web
MAX_FPS = 100  # names have times in hundredths of a second
LONGEST_SKIP = 1000  # hundredths of a second over which frames are decoded to the next one, before it is searched
SEARCH_MARGIN = 50  # hundredths of a second: a frame is decoded before it is shown, and searched by either time

_latest = threading.local()  # of each thread: the reader that stays open for the next frame, and whose it is


class FrameName(NamedTuple):
    """A video, and the time of a frame of it in hundredths of a second after the start."""

    video: str
    time: int


def frame_of(path: str | Path) -> FrameName | None:
    """The frame that a path names; None if it names a file."""
    match = FRAME_NAME.fullmatch(os.fspath(path))
    return FrameName(match[1], round(100 * float(match[2]))) if match else None


def frame_time(path: str | Path) -> float | None:
    """The time of a frame in seconds after the start of its video; None for the path of a file."""
    frame = frame_of(path)
    return None if frame is None else frame.time / 100


def is_video(path: str | Path) -> bool:
    """Whether a path has the suffix of a video that is read."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


def list_frames(video: str | Path, fps: float) -> list[str]:
    """The names of frames of a video, in their order: of every 1/fps seconds, the first frame.

    There are fewer where the video has fewer, and at most MAX_FPS a second. The file is read, but not decoded. Raises
    InputError if fps is not above 0, PyAV is not installed, or the file is missing, damaged or holds no video.
    """
    if not 0 < fps < math.inf:
        raise InputError(f"{fps} frames a second. Expected a number above 0.")
    fps = min(fps, MAX_FPS)
    try:
        times = VideoReader(os.fspath(video)).frame_times()
    except InputError as error:
        raise InputError(f"Cannot read the video {video}: {error}") from error
    steps = (math.floor(100 * i / fps) for i in range(math.floor(times[-1] * fps / 100) + 1))
    chosen = dict.fromkeys(times[bisect.bisect_left(times, step)] for step in steps)  # each once, in order
    return [f"{os.fspath(video)}#t={time // 100}.{time % 100:02}" for time in chosen]


def load_frame(frame: FrameName) -> "Image.Image":
    """The RGB image of a frame, turned as the video says: the first one at its time or later, in whole hundredths.

    It is the same whatever was loaded before. Frames in the order of their times are decoded one after the other, in
    each thread. Raises InputError as list_frames does, and if the video ends before that time.
    """
    owner = os.getpid(), frame.video  # a process that was forked must not use the open file of its parent
    try:
        if getattr(_latest, "owner", None) != owner:
            _latest.owner = None
            _latest.reader, _latest.owner = VideoReader(frame.video), owner
        return _latest.reader.image_at(frame.time)
    except InputError as error:
        _latest.owner = None
        name = f"{frame.video}#t={frame.time / 100:.2f}"
        raise InputError(f"Cannot read the frame {name}: {error}") from error


class VideoReader:
    """A video that is open, and decoded up to some frame. Times are hundredths of a second after the start.

    Raises InputError as list_frames does, without the name of the file.
    """

    def __init__(self, video: str) -> None:
        self.video = video
        with ffmpeg_errors():
            self._open()

    def frame_times(self) -> list[int]:
        """The times of all frames, ascending, each once. The reader is at the end then."""
        with ffmpeg_errors():
            packets = [packet.pts for packet in self.container.demux(self.stream) if packet.pts is not None]
        times = sorted({time for time in map(self._time_of, packets) if time >= 0})
        if not times:
            raise InputError("it has no frames whose times are known. Convert it to MP4.")
        return times

    def image_at(self, time: int) -> "Image.Image":
        """The first frame at this time or later, upright. RGB."""
        from PIL import Image

        with ffmpeg_errors():
            if not self.time < time <= self.time + LONGEST_SKIP:
                self._search(time)
            while self.time < time:
                frame = self._next()
                if frame is None:
                    raise InputError(f"the video ends at {max(self.time, 0) / 100:.2f} seconds.")
            turns = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
            turn = turns.get(round(frame.rotation / 90) % 4)  # counter-clockwise both
            return frame.to_image() if turn is None else frame.to_image().transpose(turn)

    def _open(self) -> None:
        import av

        from .image_files import check_file, check_size

        check_file(self.video)
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        self.container = av.open(f"file:{self.video}", options=options, metadata_errors="ignore")
        if not self.container.streams.video:
            raise InputError("it holds no video, but perhaps sound.")
        self.stream: Any = self.container.streams.video[0]
        check_size(self.stream.width, self.stream.height)
        self.stream.codec_context.thread_count = 1  # extraction has processes of its own
        self.frames: Iterator[Any] = iter(())
        self.time: float = math.inf  # until a frame is searched

    def _restart(self) -> None:
        self.frames, self.time = self.container.decode(self.stream), -1

    def _search(self, time: int) -> None:
        """Goes on from a frame before this time, the first one after a key frame; or from the start."""
        margin = SEARCH_MARGIN
        while time > margin:
            start = self.stream.start_time or 0
            self.container.seek(start + int((time - margin) / 100 / self.stream.time_base), stream=self.stream)
            self._restart()
            if self._next() is not None and self.time < time:
                return
            margin *= 4
        self.container.close()
        self._open()
        self._restart()

    def _next(self) -> Any:
        """The next frame, None at the end."""
        frame = next(self.frames, None)
        if frame is not None:
            time = -1 if frame.pts is None else max(self._time_of(frame.pts), -1)
            if time < self.time:
                raise InputError("its frames have no times, or wrong ones. Convert it to MP4.")
            self.time = time
        return frame

    def _time_of(self, pts: int) -> int:
        """Hundredths of a second, rounded, of a time in the unit of the stream."""
        return round(100 * (pts - (self.stream.start_time or 0)) * self.stream.time_base)


@contextmanager
def ffmpeg_errors() -> Iterator[None]:
    """Errors of PyAV in the block, and its absence, become an InputError."""
    try:
        import av
    except ImportError:
        raise InputError("it is a video, for which PyAV is needed: pip install -r requirements-video.txt") from None
    try:
        yield
    except FileNotFoundError:
        raise InputError("there is no such file.") from None
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{error.strerror}. The file may be damaged or truncated.") from error
