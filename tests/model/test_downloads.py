"""Downloads from a server of our own that misbehaves in every way we know."""

import contextlib
import os
import re
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time

import pytest
import torch
from helpers.processes import ROOT

from model import InputError, downloads
from model.downloads import Source, download

STALL = 0.5  # seconds, in these tests
PATIENCE = 15 * STALL  # within which two addresses must be done, on a busy machine


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a whole checkpoint, over three times MIN_PROGRESS."""
    path = tmp_path_factory.mktemp("whole") / "model.pth"
    torch.save({"weights": torch.arange(60_000.0)}, path)
    return path.read_bytes()


def head(length, status="200 OK", *more):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", "Connection: close", *more]
    return "\r\n".join([*lines, "", ""]).encode()


class Peer:
    """A connection to the server. `whole`: the file; `start`: from which the client wants it; `say` sends bytes."""

    def __init__(self, connection, whole, start, path, address):
        self.connection, self.whole, self.start, self.path, self.address = connection, whole, start, path, address

    def say(self, *parts):
        for part in parts:
            self.connection.sendall(part)

    def drip(self, part):
        for byte in part:
            self.say(bytes([byte]))
            time.sleep(STALL / 5)

    def wait(self):
        time.sleep(4 * STALL)

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def redirect(self, location):
        self.say(head(0, "302 Found", f"Location: {location}"))

    def rest(self, sent=None):
        """What the client wants, or its first `sent` bytes."""
        total = len(self.whole)
        content = self.whole[self.start :]
        where = [f"Content-Range: bytes {self.start}-{total - 1}/{total}"] if self.start else []
        self.say(head(len(content), "206 Partial Content" if self.start else "200 OK", *where), content[:sent])


def endless(peer, first):
    peer.say(first)
    while True:
        peer.say(bytes(1 << 16))


MISBEHAVIOURS = {  # {name: (what the server does, part of the reason that is stated)}
    "accepts and says nothing": (lambda p: p.wait(), "no progress for"),
    "sends its status line byte by byte": (lambda p: p.drip(head(10)), "no progress for"),
    "sends headers for ever": (lambda p: endless(p, b"HTTP/1.1 200 OK\r\nX: "), "malformed"),
    "stalls in the middle": (lambda p: (p.say(head(len(p.whole)), p.whole[:70_000]), p.wait()), "no progress for"),
    "drips": (lambda p: (p.say(head(len(p.whole))), p.drip(p.whole)), "no progress for"),
    "sends for ever without a length": (lambda p: endless(p, b"HTTP/1.1 200 OK\r\n\r\n"), "larger than"),
    "announces too much": (lambda p: p.say(head(10**12), p.whole), "1000000000000 bytes, more than"),
    "sends chunks for ever": (
        lambda p: endless(p, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n"),
        "larger than",
    ),
    "closes at once": (lambda p: None, "connection ended"),
    "resets": (lambda p: (p.say(head(len(p.whole))), p.reset()), "connection ended"),
    "is not HTTP": (lambda p: p.say(b"SSH-2.0-OpenSSH_9.2\r\n"), "malformed answer"),
    "ends in a chunk's size": (
        lambda p: p.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        "connection ended",
    ),
    "redirects to a malformed address": (lambda p: p.redirect("http://["), "malformed answer"),
    "redirects to a malformed port": (lambda p: p.redirect("http://127.0.0.1:port/"), "malformed answer"),
    "redirects to a file": (lambda p: p.redirect("file:///etc/passwd"), "HTTP status 302"),
    "redirects to FTP": (lambda p: p.redirect("ftp://127.0.0.1/model.pth"), "not HTTPS"),
    "redirects in circles": (lambda p: p.redirect(p.path), "HTTP status 302"),
    "answers 404": (lambda p: p.say(head(0, "404 Not Found")), "HTTP status 404"),
    "answers 206 unasked": (lambda p: p.say(head(len(p.whole), "206 Partial Content"), p.whole), "HTTP status 206"),
    "sends a page": (lambda p: p.say(head(6), b"<html>"), "not a complete checkpoint"),
    "sends another file of the same length": (
        lambda p: p.say(head(len(p.whole)), bytes(len(p.whole))),
        "not a complete checkpoint",
    ),
    "sends a number that is no length, and half": (
        lambda p: p.say(head(9 * "9" * 999), p.whole[:70_000]),
        "not a complete checkpoint",
    ),
    "continues elsewhere": (
        lambda p: (
            p.say(head(9, "206 Partial Content", "Content-Range: bytes 7-15/16"), 9 * b"x")
            if p.start
            else p.say(head(len(p.whole)), p.whole[:70_000])
        ),
        "another place",
    ),
    "continues with nothing": (
        lambda p: None if p.start else p.say(head(len(p.whole)), p.whole[:70_000]),
        "connection ended",
    ),
}
PECULIARITIES = {  # what is no reason to refuse a file
    "states no length": lambda p: p.say(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", p.whole),
    "states abc for a length": lambda p: p.say(head("abc"), p.whole),
    "states a negative length": lambda p: p.say(head(-5), p.whole),
    "sends chunks": lambda p: p.say(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        *(b"%x\r\n%b\r\n" % (len(part), part) for part in (p.whole[:99], p.whole[99:])),
        b"0\r\n\r\n",
    ),
    "breaks off twice": lambda p: p.rest() if p.start > 60_000 else p.rest(sent=50_000),
    "breaks off and begins anew": lambda p: p.say(head(len(p.whole)), p.whole if p.start else p.whole[:70_000]),
    "breaks off and continues": lambda p: p.rest() if p.start else p.rest(sent=70_000),
    "redirects once": lambda p: p.rest() if p.path.endswith("2") else p.redirect(f"{p.path}2"),
}


class Server(socketserver.ThreadingTCPServer):
    """Answers GET /NAME/model.pth with behaviours[NAME]. Attribute: requests, (path, first byte that is wanted)."""

    daemon_threads, allow_reuse_address, block_on_close = True, True, False

    def __init__(self, whole, behaviours):
        self.whole, self.behaviours, self.requests = whole, behaviours, []
        super().__init__(("127.0.0.1", 0), None)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True, args=(0.01,)).start()

    def finish_request(self, request, client_address):
        text = request.recv(1 << 16).decode()
        path = text.split()[1]
        wanted = re.search(r"Range: bytes=(\d+)-", text)
        start = int(wanted[1]) if wanted else 0
        self.requests.append((path, start))
        behaviour = self.behaviours[path.split("/")[1].replace("_", " ")]
        with contextlib.suppress(OSError):  # the client has left
            behaviour(Peer(request, self.whole, start, path, self.address))


@pytest.fixture
def server(whole, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "STALL_SECONDS", STALL)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(str(tmp_path / "hub"))
    with Server(whole, {**PECULIARITIES, **{name: act for name, (act, _) in MISBEHAVIOURS.items()}}) as server:
        yield server
        server.shutdown()


def source(server, *names, **options):
    urls = [f"{server.address}/{name.replace(' ', '_')}/model.pth" for name in names]
    return Source(urls, "--model", options.get("max_bytes", 1 << 20), options.get("sha256"))


def nothing(checkpoint, path):
    """Loads any checkpoint."""


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_an_address_that_misbehaves_is_left_in_time_for_the_next(server, whole, tmp_path, name):
    started = time.monotonic()
    path = download(source(server, name, "redirects once"), nothing)
    assert path.read_bytes() == whole and list(path.parent.iterdir()) == [path]
    assert time.monotonic() - started < PATIENCE
    path.unlink()
    with pytest.raises(InputError) as caught:
        download(source(server, name), nothing)
    address, reason = f"{server.address}/{name.replace(' ', '_')}/model.pth (", MISBEHAVIOURS[name][1]
    assert address in str(caught.value) and reason in str(caught.value)
    assert str(path) in str(caught.value) and "--model" in str(caught.value)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", PECULIARITIES)
def test_a_peculiar_answer_gives_the_whole_file(server, whole, name):
    path = download(source(server, name), nothing)
    assert path.read_bytes() == whole
    starts = [start for _, start in server.requests]
    assert starts == {"breaks off twice": [0, 50_000, 100_000], "redirects once": [0, 0]}.get(
        name, [0, 70_000] if "breaks off" in name else [0]
    )


def test_https_is_never_left_by_a_redirect():
    follow = downloads._Redirects().redirect_request
    request = downloads.urllib.request.Request("https://host/model.pth")
    with pytest.raises(OSError, match="redirects to http://host/model.pth, which is not HTTPS"):
        follow(request, None, 302, "Found", {}, "http://host/model.pth")
    assert follow(request, None, 302, "Found", {}, "https://other/model.pth").full_url == "https://other/model.pth"


def test_what_is_no_file_of_this_model_is_replaced(server, whole):
    """In the cache, and from an address, without a checksum to tell."""

    def load(checkpoint, path):
        if "weights" not in checkpoint:
            raise InputError(f"{path} looks like another model.")

    path = download(source(server, "redirects once"), nothing)
    torch.save({"other": torch.ones(1)}, path)
    other = path.read_bytes()
    with pytest.raises(InputError, match="another model: looks like another model.*status 404"):
        download(source(server, "answers 404"), load)
    assert path.read_bytes() == other  # offline it is all there is
    server.behaviours["other"] = lambda p: p.say(head(len(other)), other)
    assert download(source(server, "other", "redirects once"), load) == path
    assert path.read_bytes() == whole and [name for name, _ in server.requests[-3:]] == [
        "/other/model.pth",
        "/redirects_once/model.pth",
        "/redirects_once/model.pth2",
    ]


KILLED = """
import sys, torch
from model.downloads import Source, download
torch.hub.set_dir(sys.argv[1])
print("ready", flush=True)
download(Source([sys.argv[2]], "--model", 1 << 20), lambda *_: None)
"""


def test_what_a_killed_download_left_goes_and_what_a_live_one_writes_stays(server, whole, tmp_path):
    server.behaviours["waits"] = lambda p: (p.say(head(len(p.whole)), p.whole[:99_999]), time.sleep(60))
    hub = tmp_path / "hub"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(hub), f"{server.address}/waits/model.pth"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            for _ in range(600):
                left = list((hub / "checkpoints").glob(".model.pth.*.tmp")) if hub.exists() else []
                if left and server.requests:
                    break
                time.sleep(0.1)
            download(source(server, "redirects once"), nothing).unlink()
            assert left == list((hub / "checkpoints").iterdir())
        finally:
            process.kill()
    path = download(source(server, "redirects once"), nothing)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_signal_ends_a_download_that_hangs(server, tmp_path, number):
    """Within seconds, with nothing left. The server never answers, as does a name service."""
    server.behaviours["waits"] = lambda p: time.sleep(60)
    code = """
import signal, sys, torch
from model.downloads import Source, download
from utils.runtime.script import cli_main
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.hub.set_dir(sys.argv[1])
cli_main(lambda: download(Source([sys.argv[2]], "--model", 1 << 20), lambda *_: None))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "hub"), f"{server.address}/waits/model.pth"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE) as process:
        try:
            for _ in range(600):
                if server.requests:
                    break
                time.sleep(0.1)
            process.send_signal(getattr(signal, number))
            assert process.wait(5) == (130 if number == "SIGINT" else 143)
        finally:
            process.kill()
    assert list((tmp_path / "hub/checkpoints").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named_with_the_remedies(tmp_path, monkeypatch):
    (tmp_path / "home").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "home" / "hub"))
    with pytest.raises(InputError) as caught:
        download(Source(["http://127.0.0.1:9/model.pth"], "--model FILE", 99), nothing)
    words = (str(tmp_path / "home/hub/checkpoints"), "Not a directory", "TORCH_HOME", "--model FILE")
    assert all(word in str(caught.value) for word in words)
