"""Text that any terminal can show: file names may hold control characters, and bytes that are not UTF-8."""

import contextlib
import logging
import sys
import unicodedata


def printable(text: object) -> str:
    """The text with control and formatting characters as escapes, except line breaks and tabs, and stray bytes too.

    Names come from disks and indexes of strangers, and such characters can rewrite what a terminal shows.
    """
    encodable = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c.encode("unicode_escape").decode() if _is_hidden(c) else c for c in encodable)


def _is_hidden(character: str) -> bool:
    """Joiners are formatting characters that names in some scripts need, and harmless."""
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in "\n\t\u200c\u200d"


class PrintableFormatter(logging.Formatter):
    """Formats messages as printable text."""

    def format(self, record: logging.LogRecord) -> str:
        """The formatted record."""
        return printable(super().format(record))


def accept_any_text() -> None:
    """Lets standard output and error escape what their encoding lacks, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook's or a test's stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def show_warnings() -> None:
    """Prints warnings on standard error, until a run starts its log."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(PrintableFormatter("warning: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[terminal])
