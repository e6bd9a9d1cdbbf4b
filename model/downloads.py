"""Downloading a file from the first of several addresses that gives it, within limits of time and size."""

import contextlib
import hashlib
import http.client
import logging
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch.hub import tqdm  # type: ignore[attr-defined]  # a plain counter where tqdm is not installed

from .checkpoint_files import READ_BLOCK, read_checkpoint
from .errors import InputError
from .files import new_temporary, open_regular
from .versions import VERSION

ACCEPT = "SELAVPR_ACCEPT_SHA256"  # environment variable: checksums, separated by spaces, that count as the published
STALL_SECONDS = 30.0  # in which an address must answer, and then send MIN_PROGRESS bytes
MIN_PROGRESS = 1 << 16
MAX_CONTINUATIONS = 5  # of a broken download, in a row from one address
MAX_QUEUED = 8  # blocks that were received and not written yet
LEFTOVER_SECONDS = 3600  # a download of an earlier version that wrote nothing for so long was killed
OLD_PARTIAL = r"\.\d+\.partial(\.[0-9a-f]+\.partial)?"  # names that earlier versions gave, and torch.hub


class Source(NamedTuple):
    """What is downloaded. urls: in order of preference; flag: takes a local file instead; max_bytes: more is not read;
    sha256: of the file, verified where it is given.
    """

    urls: list[str]
    flag: str
    max_bytes: int
    sha256: str | None = None


class _Failed(Exception):
    """An address does not give the file. The message says why."""


class _Broken(_Failed):
    """The connection ended early: the rest may still come."""


def download(source: Source, load: Callable[[dict, Path], None]) -> Path:
    """The file in torch.hub's cache, downloaded from the first address that gives it if it is not there yet.

    load: called with the content of the checkpoint, and its path for messages; raises InputError for another model's.
    A file takes its place in the cache only once it is loaded. One in the cache that cannot be loaded, or has another
    checksum than `source.sha256` that the environment variable SELAVPR_ACCEPT_SHA256 does not contain, is downloaded
    again. Raises InputError, which names the addresses, the file and the flag.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / source.urls[0].rsplit("/", 1)[-1]
    reasons = []
    if path.is_file():
        problem = _load_problem(path, source, load)
        if problem is None:
            return path
        logging.warning("%s cannot be used: %s. Downloading it again.", path, problem)
        reasons.append(f"{path}, which is replaced once the download succeeds: {problem}")
    temporary, file = _open_cache(path, source)
    try:
        with file:
            for url in source.urls:
                logging.info("Downloading %s", url)
                try:
                    _fetch(url, file, source.max_bytes)
                    problem = _load_problem(temporary, source, load)
                except _Failed as failure:
                    problem = str(failure)
                if problem is None:
                    if os.name == "nt":  # an open file cannot be moved there
                        file.close()
                    os.replace(temporary, path)
                    return path
                reasons.append(f"{url} ({problem})")
    except OSError as error:  # the network's errors are among the reasons
        raise InputError(_unwritable(path.parent, error, source)) from error
    finally:
        temporary.unlink(missing_ok=True)
    raise InputError(
        f"Cannot download {' or '.join(reasons)}.\n"
        f"If you are offline, fetch the file on another machine and save it as {path}, or pass its path with "
        f"{source.flag}."
    )


def _open_cache(path: Path, source: Source) -> tuple[Path, IO[bytes]]:
    """A new temporary file in the cache, open to write and read. Removes what killed downloads have left there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = re.compile(re.escape(path.name) + OLD_PARTIAL)
        for leftover in path.parent.iterdir():
            if names.fullmatch(leftover.name) and time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                logging.info("Removing %s, which a killed download has left.", leftover)
                leftover.unlink(missing_ok=True)
        create = os.O_RDWR | os.O_CREAT | os.O_EXCL
        temporary, descriptor = new_temporary(path, lambda name: open_regular(name, create))
    except OSError as error:
        raise InputError(_unwritable(path.parent, error, source)) from error
    return temporary, open(descriptor, "w+b")


def _unwritable(folder: Path, error: OSError, source: Source) -> str:
    return (
        f"Cannot write to {folder}, where downloads are kept: {error.strerror or error}. Set the environment variable "
        f"TORCH_HOME to a folder that you can write to, or download {source.urls[0]} yourself and pass its path with "
        f"{source.flag}."
    )


def _load_problem(path: Path, source: Source, load: Callable[[dict, Path], None]) -> str | None:
    """Why a file cannot be used, after `load`; None if it can."""
    if problem := _checksum_problem(path, source.sha256):
        return problem
    try:
        checkpoint = read_checkpoint(path)
    except InputError:
        return "not a complete checkpoint"
    try:
        load(checkpoint, path)
    except InputError as error:
        return f"the checkpoint of another model: {str(error).splitlines()[0].removeprefix(str(path)).strip()}"
    return None


def _checksum_problem(path: Path, expected: str | None) -> str:
    """What is wrong with a file's SHA-256, with both sums and how to accept it; "" if nothing is, or none is known."""
    if expected is None or (actual := _sha256(path)) == expected:
        return ""
    if actual in os.environ.get(ACCEPT, "").split():
        logging.warning("Accepting a file with the SHA-256 %s instead of %s, as %s says.", actual, expected, ACCEPT)
        return ""
    return (
        f"the SHA-256 is {actual}, but that of the published file is {expected}. If you trust this file, accept it "
        f"with the environment variable {ACCEPT}={actual}."
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _fetch(url: str, file: IO[bytes], max_bytes: int) -> None:
    """Writes what an address gives into an empty file. A connection that breaks is continued where it ended.

    Raises _Failed, and OSError where the file cannot be written.
    """
    file.truncate(0)
    file.seek(0)
    for attempt in range(MAX_CONTINUATIONS + 1):
        start = file.tell()
        try:
            _receive(_Transfer(url, start, max_bytes), file, max_bytes)
        except _Broken:
            if file.tell() <= start or attempt == MAX_CONTINUATIONS:
                raise
            logging.info("The connection to %s broke. Continuing after %.1f MB.", url, file.tell() / 1e6)
        else:
            break
    file.flush()


def _receive(transfer: "_Transfer", file: IO[bytes], max_bytes: int) -> None:
    """Writes what a transfer receives. Raises _Failed for one that stalls, is too large, or fails."""
    progress, deadline = 0, time.monotonic() + STALL_SECONDS
    with transfer, tqdm(total=None, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            item = transfer.next(deadline)
            if isinstance(item, _Answer):  # everything before this is void if the server begins anew
                file.truncate(item.start)
                file.seek(item.start)
                if item.total is not None:
                    bar.total = item.total
                bar.update(item.start)
                deadline = time.monotonic() + STALL_SECONDS
            elif isinstance(item, bytes):
                file.write(item)
                bar.update(len(item))
                if file.tell() > max_bytes:
                    raise _Failed(f"the file is larger than the {max_bytes} bytes that are expected at most")
                progress += len(item)
                if progress >= MIN_PROGRESS:
                    progress, deadline = 0, time.monotonic() + STALL_SECONDS
            elif item is None:
                return
            else:
                raise item


class _Answer(NamedTuple):
    """What a server announces. start: of the first byte that it sends; total: bytes of the file, None if not known."""

    start: int
    total: int | None


class _Transfer:
    """A request that runs in a thread of its own, so that nothing that a server or a name service does can hold this
    one: it waits for an item until a deadline, and a stop signal ends the waiting.
    """

    def __init__(self, url: str, start: int, max_bytes: int) -> None:
        self.url, self.start, self.max_bytes = url, start, max_bytes
        self._items: queue.Queue[_Answer | bytes | _Failed | None] = queue.Queue(MAX_QUEUED)
        self._ended = threading.Event()

    def next(self, deadline: float) -> "_Answer | bytes | _Failed | None":
        """What came next: the answer, then blocks, then None or a failure. Raises _Failed at the deadline."""
        try:
            return self._items.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise _Failed(f"no progress for {STALL_SECONDS:g} seconds") from None

    def __enter__(self) -> "_Transfer":
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()  # the thread ends with its next item, or later with the time limit of its socket

    def _run(self) -> None:
        end: _Failed | None = None
        try:
            for item in self._items_of_request():
                self._put(item)
                if self._ended.is_set():
                    return
        except _Failed as failure:
            end = failure
        except urllib.error.HTTPError as error:
            end = _Failed(f"HTTP status {error.code}")
        except urllib.error.URLError as error:
            end = _Failed(str(error.reason))
        except (OSError, http.client.IncompleteRead) as error:
            end = _Broken(f"the connection ended early: {str(error) or type(error).__name__}")
        except (http.client.HTTPException, ValueError) as error:  # whatever a malformed answer raises
            end = _Failed(f"a malformed answer: {type(error).__name__}: {str(error)[:200]}")
        self._put(end)

    def _put(self, item: "_Answer | bytes | _Failed | None") -> None:
        while not self._ended.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=1)
                return

    def _items_of_request(self) -> Iterator[_Answer | bytes]:
        headers = {"User-Agent": f"selavprplusplus/{VERSION}", "Accept-Encoding": "identity"}
        if self.start:
            headers["Range"] = f"bytes={self.start}-"
        request = urllib.request.Request(self.url, headers=headers)
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(request, timeout=2 * STALL_SECONDS) as response:
            answer = _read_answer(response, self.start)
            if answer.total is not None and answer.total > self.max_bytes:
                raise _Failed(
                    f"the file has {answer.total} bytes, more than the {self.max_bytes} that are expected at most"
                )
            yield answer
            received = answer.start
            while block := response.read1(READ_BLOCK):
                received += len(block)
                yield block
            if answer.total is not None and received < answer.total:
                raise _Broken(f"the connection ended after {received} of {answer.total} bytes")


def _read_answer(response: Any, start: int) -> _Answer:
    """Where the content of a response begins and ends in the file. A malformed length counts as unknown."""
    if start and response.status == 206:
        found = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start:
            raise _Failed("it continues the file at another place than was asked for")
        return _Answer(start, None if found[2] == "*" else int(found[2]))
    if response.status != 200:
        raise _Failed(f"HTTP status {response.status}")
    length = response.headers.get("Content-Length", "")
    is_number = re.fullmatch(r"\d{1,15}", length) and response.length is not None
    return _Answer(0, int(length) if is_number else None)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but none from HTTPS to a connection that anyone on the way can change."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request that follows. Raises URLError for one that is refused."""
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise urllib.error.URLError(f"it redirects to {newurl[:200]}, which is not HTTPS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
