"""Opening files that are no pipes, devices or links; and temporary files, whose lock says that their process lives."""

import errno
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
else:

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


LOCKLESS_SECONDS = 86_400  # where a file system has no locks, what nobody has changed for so long was left behind
HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}  # with which a lock is refused that another process holds
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, 524}  # 524: Linux's ENOTSUPP
HOST = re.sub("[^A-Za-z0-9-]", "", platform.node())[:16] or "host"
TEMPORARY = re.compile(r"\..+\.([A-Za-z0-9-]{1,16}\.[0-9a-f]{12}|\d+)\.tmp")  # the latter: of earlier versions
MAX_NAME_BYTES = 255
# Without O_NONBLOCK, opening a pipe waits for its other end. Windows lacks most of these, and needs O_BINARY.
ALWAYS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"))
NOT_THROUGH_LINKS = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a regular file, opened as os.open does. Files to write are not opened through symbolic links.

    Raises InputError for a pipe, a device, a folder or, to write, a link; and OSError as os.open does.
    """
    to_write = flags & (os.O_WRONLY | os.O_RDWR)
    try:
        descriptor = os.open(path, flags | ALWAYS | (NOT_THROUGH_LINKS if to_write else 0), 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR) and os.path.lexists(path):
            require_regular(path, links=not to_write)
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _not_regular(path, links=not to_write)


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most so many bytes. Raises InputError for others, OSError as open does."""
    with open(open_regular(path), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(f"{path} is too large: over {max_bytes} bytes. This project has not written it.")
    return data


def require_regular(path: str | Path, *, links: bool = False) -> None:
    """Raises InputError for what exists and is not a regular file, or (with `links`) a link to one."""
    try:
        mode = (os.stat if links else os.lstat)(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise _not_regular(path, links=links)


def _not_regular(path: str | Path, *, links: bool) -> InputError:
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFDIR: "a folder",
        stat.S_IFSOCK: "a socket",
    }
    try:
        kind = kinds.get(stat.S_IFMT((os.stat if links else os.lstat)(path).st_mode), "a device")
    except OSError:
        kind = "something else"
    return InputError(f"{path} is {kind}. Expected a regular file. Remove it, or choose another name.")


def try_lock(descriptor: int) -> bool | None:
    """Locks an open file or folder until it is closed. False if another process holds its lock; None where the file
    system has no locks. Raises other OSErrors.
    """
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def new_temporary(path: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Creates a temporary file or folder beside `path`, under a name that no other process has, and locks it.

    create: makes and opens it. Returns its path, and the descriptor that holds the lock. What killed processes have
    left of earlier ones is removed.
    """
    remove_leftovers(path.parent, path.name)
    while True:
        temporary = temporary_path(path)
        descriptor = create(temporary)
        # An open file cannot be moved on Windows: it is closed first, and nothing can hold a lock.
        is_ours = os.name == "nt" or try_lock(descriptor) is not False
        if is_ours and temporary.exists():  # another process may have taken it for a leftover before it was locked
            return temporary, descriptor
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process has, on whichever machine."""
    return path.with_name(f"{temporary_prefix(path.name)}{HOST}.{secrets.token_hex(6)}.tmp")


def temporary_prefix(name: str) -> str:
    """What the names of temporary files beside a file begin with: its own, as far as names may be long."""
    size = MAX_NAME_BYTES - len(f"..{HOST}.{12 * 'f'}.tmp")
    return f".{os.fsdecode(os.fsencode(name)[:size])}."


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files and folders that killed processes have left; of those beside one file, or all.

    One whose process lives stays: on whichever machine that runs, it holds the lock.
    """
    prefix = temporary_prefix(name) if name else "."
    try:
        names = sorted(entry for entry in os.listdir(folder) if entry.startswith(prefix) and TEMPORARY.fullmatch(entry))
    except OSError:
        return  # whoever writes there will say so
    for path in (folder / entry for entry in names):
        try:
            access = os.O_RDONLY if path.is_dir() else os.O_RDWR  # NFS locks only what is open to write
            descriptor = os.open(path, access | ALWAYS | NOT_THROUGH_LINKS)
        except OSError:  # another process has removed it, or its user keeps others out
            continue
        try:
            is_dead = try_lock(descriptor) if os.name != "nt" else None
            status = os.fstat(descriptor)
            if is_dead is None:
                is_dead = time.time() - status.st_mtime > LOCKLESS_SECONDS
            if is_dead:
                logging.info("Removing %s (%.1f MB), left by a process that was killed.", path, status.st_size / 1e6)
                shutil.rmtree(path) if stat.S_ISDIR(status.st_mode) else path.unlink()
        except FileNotFoundError:
            pass
        finally:
            os.close(descriptor)
