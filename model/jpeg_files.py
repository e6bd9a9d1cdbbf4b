"""The structure of JPEG files: the number of scans, and whether a file that ends too early holds all of its pixels."""

import re
import struct
from pathlib import Path
from random import Random
from typing import NamedTuple

MAX_BYTES = 1 << 30  # of a file that is read; no image below image_files.MAX_PIXELS needs more
END_MARKER = b"\xff\xd9"
FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # markers after which the frame is described
SCAN = 0xDA
MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)  # other pairs with ff belong to the pixels
COEFFICIENTS = range(64)
RESTART_MARKERS = [bytes((0xFF, 0xD0 + i)) for i in range(8)]  # one of which a decoder may wait for
NUM_VERSIONS = 8  # by chance, two may have the same pixels although some are missing


class JpegStructure(NamedTuple):
    """The number of scans; whether they give all bits of all coefficients; whether the end marker is there."""

    scans: int
    is_covered: bool
    has_end: bool


def read_jpeg(source: str | Path | bytes) -> bytes:
    """The content of a JPEG file, which is given itself, or by its path."""
    if isinstance(source, bytes):
        return source[:MAX_BYTES]
    with open(source, "rb") as file:
        return file.read(MAX_BYTES)


def jpeg_structure(data: bytes) -> JpegStructure:
    """The structure of the first image in a file, which ITU-T T.81 defines. A file may end anywhere."""
    missing: dict[tuple[int, int], int] = {}  # {(component, coefficient): bits that no scan has given yet}
    scans, has_end, place = 0, False, 2
    while marker := MARKER.search(data, place):
        code, place = marker[1][0], marker.end()
        if code == END_MARKER[1]:
            has_end = True
            break
        (length,) = struct.unpack(">H", data[place : place + 2].rjust(2, b"\0"))
        segment, place = data[place + 2 : place + length], place + max(length, 2)
        if code in FRAMES:
            components = segment[6 : 6 + 3 * segment[5] : 3] if len(segment) > 5 else b""
            missing = {(component, k): 16 for component in components for k in COEFFICIENTS}
        elif code == SCAN and len(segment) >= 4:
            scans += 1
            first, last, bits = segment[-3:]
            for component in segment[1 : 1 + 2 * segment[0] : 2]:
                missing |= {(component, k): bits & 15 for k in range(first, last + 1)}
    return JpegStructure(scans, bool(missing) and not any(missing.values()), has_end)


def completed_versions(data: bytes) -> list[bytes]:
    """A file that lacks its end marker, with different bytes and the marker added; none if it lacks more for sure.

    If all versions have the same pixels, these do not depend on what was added: the file holds all of them.
    """
    structure = jpeg_structure(data)
    if structure.has_end or not structure.is_covered:
        return []
    random, versions = Random(0), []
    for i in range(NUM_VERSIONS):
        padding = b"".join(bytes(random.randrange(255) for _ in range(64)) + RESTART_MARKERS[j ^ i] for j in range(8))
        versions.append(data.rstrip(b"\xff") + padding + END_MARKER)
    return versions
