"""What a service may be asked, by whom, and what it shows."""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from model import InputError
from utils.runtime.flags import flag, non_negative_int, positive_float, positive_int, switch

MAX_PORT = 65535
TOKEN = "SELAVPR_TOKEN"  # the environment variable
TOKEN_FORM = re.compile("[!-~]{16,}")


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """queue: images that wait or are computed at a time; max_bytes, max_pixels: of an image that is sent;
    upload_seconds: within which it must have arrived. writable: images may be added and removed. show_paths: answers
    name the files of images with their folders. examples: a folder of images to try, on the page.
    """

    queue: int = flag(
        "images that may wait to be described; beyond that, requests are answered with 503 and Retry-After",
        type=positive_int,
        default=64,
    )
    max_bytes: int = flag("of an image that is sent", type=positive_int, default=32 << 20)
    max_pixels: int = flag("of an image that is sent", type=positive_int, default=64_000_000)
    upload_seconds: float = flag(
        "time within which a request must have arrived", type=positive_float, default=30.0, metavar="SECONDS"
    )
    writable: bool = switch("let requests add images to the index, and remove them")
    show_paths: bool = switch("name images by their whole paths, not by their file names alone")
    examples: Path | None = flag("a folder with images to try, which the page shows", default=None, metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may ask. host, port: to listen on. token: what requests must bring; None: nothing. public_names: names under
    which a proxy passes requests on. tls_cert, tls_key: the files of a certificate; None: the connection is not
    encrypted, which on another interface than that of this machine `plain_http` must allow.

    Raises InputError for values that do not go together, or are not safe.
    """

    host: str = flag("address to listen on; by default only this machine reaches it", default="127.0.0.1")
    port: int = flag("port to listen on; 0 for any that is free", type=non_negative_int, default=8000)
    token: str | None = flag(
        "what requests must bring: 16 or more characters; visible to other users of this machine, unlike the "
        f"environment variable {TOKEN}",
        default_from=lambda flags: os.environ.get(TOKEN) or None,
    )
    public_names: tuple[str, ...] = flag(
        "names under which a reverse proxy is reached, such as places.example.org; with these, requests under other "
        "names are refused",
        name="public_name",
        nargs="+",
        default=(),
        metavar="NAME",
    )
    tls_cert: Path | None = flag("certificate chain, to encrypt connections (PEM)", default=None)
    tls_key: Path | None = flag("its private key (PEM)", default=None)
    plain_http: bool = switch(
        "listen on another --host without encryption: the network is trusted, or a proxy encrypts"
    )

    def __post_init__(self) -> None:
        if self.port > MAX_PORT:
            raise InputError(f"--port is {self.port}. Choose one up to {MAX_PORT}.")
        if self.token is not None and not TOKEN_FORM.fullmatch(self.token):
            raise InputError(
                f"The token of --token or {TOKEN} has {len(self.token)} characters. Expected 16 or more letters, "
                "digits and signs of ASCII, such as those of: openssl rand -hex 32"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("A certificate has a private key. Give --tls_cert and --tls_key, or neither.")
        if not (is_local(self.host) or self.tls_cert or self.plain_http):
            raise InputError(
                f"--host {self.host} is open to the network, which could read images, answers and the token. Give "
                "--tls_cert and --tls_key; or --plain_http, if the network is trusted or a proxy encrypts."
            )

    @property
    def name(self) -> str:
        """The name or address that a browser opens. 0.0.0.0 and ::, which stand for all interfaces, are none."""
        if self.host not in ("0.0.0.0", "::"):
            return self.host
        return "127.0.0.1" if self.public_names else socket.gethostname()  # names that are not stated are refused


def is_local(host: str) -> bool:
    """Whether a host name or address is of this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
