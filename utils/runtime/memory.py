"""Memory of the machine and of this process."""

import ctypes
import math
import os
import sys

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def memory_bytes() -> float:
    """Physical memory of this machine, in bytes; infinity on Windows, where Python cannot tell."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory_bytes() -> float:
    """The most memory that this process has used at once, in bytes; NaN on Windows, where Python cannot tell."""
    if resource is None:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Makes glibc reuse freed buffers instead of returning them to the system. Elsewhere it does nothing.

    Otherwise every batch on a CPU pages its buffers in again, which takes a tenth of extraction and more
    (benchmarks/README.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
