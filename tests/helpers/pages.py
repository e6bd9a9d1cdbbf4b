"""Blocks of code in the pages of the documentation."""

import re
from pathlib import Path

FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages in a page."""
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]
