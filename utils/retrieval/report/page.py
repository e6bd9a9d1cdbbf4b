"""A page in one file: sections, and a gallery of queries with their predictions, if there are such. It needs no server
and no network.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.retrieval.report.charts import escape
from utils.retrieval.report.pictures import Shown
from utils.retrieval.report.thumbnails import thumbnails
from utils.runtime.atomic_files import atomic_write
from utils.runtime.terminal import printable

FOLDER = Path(__file__).parent
# What the page may load: its own pictures, style sheet and script, the latter two by their hashes, and nothing else.
POLICY = (
    "default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"
)
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: its anchor, heading, and content as HTML."""

    anchor: str
    heading: str
    content: str


@dataclass(kw_only=True)
class Gallery:
    """The queries that a page shows with pictures.

    rows: names of the rows of predictions of each query; filters and sorts: what a reader can choose; queries: as
    page.js expects them, with images from `cell`.
    """

    heading: str
    note: str
    rows: list[str]
    filters: list[dict[str, Any]] = field(default_factory=list)
    sorts: list[dict[str, Any]] = field(default_factory=list)
    queries: list[dict[str, Any]] = field(default_factory=list)
    _images: dict[str, dict[str, Any]] = field(default_factory=dict)  # {path: what the page knows of it}, in order
    _indices: dict[str, int] = field(default_factory=dict)

    def cell(self, shown: Shown, name: str, place: np.ndarray | None = None) -> dict[str, Any]:
        """An image as page.js expects it, of which the page keeps one thumbnail. place: on the map."""
        number = None
        if shown.image is not None:
            key = str(shown.image)
            number = self._indices.setdefault(key, len(self._images))
            xy = None if place is None else [round(float(value), 1) for value in place]
            self._images.setdefault(key, {"name": printable(name), "xy": xy})
        correct = {"correct": True, "wrong": False}.get(shown.kind)
        return {"image": number, "captions": list(shown.captions), "correct": correct}

    def add_sort(self, label: str, key: int, *, descending: bool = False) -> None:
        """An order to choose, by a number of each query."""
        self.sorts.append({"label": label, "key": key, "descending": descending})

    def add_filter(self, label: str, options: dict[str, str]) -> None:
        """A choice among tags, {tag: label}; those that no query has are left out."""
        counts = {tag: sum(tag in query["tags"] for query in self.queries) for tag in options}
        present = [
            {"tag": tag, "label": printable(text), "count": counts[tag]} for tag, text in options.items() if counts[tag]
        ]
        if present:
            self.filters.append({"label": label, "options": present})

    def data(self, *, exif_orientation: bool) -> dict[str, Any]:
        """All of it, with thumbnails, for JSON."""
        pictures = thumbnails(list(self._images), exif_orientation=exif_orientation)
        images = [known | picture for known, picture in zip(self._images.values(), pictures, strict=True)]
        content = {name: getattr(self, name) for name in ("filters", "sorts", "queries")}
        return {"rows": [printable(row) for row in self.rows], "images": images, **content}


@dataclass(frozen=True, kw_only=True)
class Page:
    """title: in the browser's tab; heading; header: HTML below it; sections before and after the gallery. Without one
    the page has no script.
    """

    title: str
    heading: str
    header: str
    before: list[Section]
    gallery: Gallery | None = None
    after: list[Section] = field(default_factory=list)

    def write(self, path: Path, *, exif_orientation: bool = False) -> None:
        """Writes the page. Raises InputError if the file cannot be written."""
        style, script = _read("page.css"), _read("page.js") if self.gallery else ""
        gallery = [Section(anchor="gallery", heading=self.gallery.heading, content="")] if self.gallery else []
        links = (
            f'<li><a href="#{section.anchor}">{escape(section.heading)}</a></li>'
            for section in (*self.before, *gallery, *self.after)
        )
        parts = {
            "policy": POLICY.format(style=content_hash(style), script=content_hash(script) if script else "none"),
            "title": escape(self.title),
            "style": style,
            "skip": "",
            "header": f"<h1>{escape(self.heading)}</h1>{self.header}",
            "navigation": "".join(links),
            "before": "".join(map(_section, self.before)),
            "gallery": "",
            "after": "".join(map(_section, self.after)),
            "script": "",
        }
        if self.gallery:
            parts |= {
                "skip": '<a class="skip" href="#gallery">Skip to the gallery</a>',
                "gallery": fill(
                    _read("gallery.html"), {"heading": escape(self.gallery.heading), "note": self.gallery.note}
                ),
                "script": fill(
                    '<script type="application/json" id="data">{{data}}</script>\n<script>{{script}}</script>',
                    {"data": json_text(self.gallery.data(exif_orientation=exif_orientation)), "script": script},
                ),
            }
        with atomic_write(path) as file:
            file.write(fill(_read("page.html"), parts))


def fill(template: str, parts: dict[str, str]) -> str:
    """A template with its placeholders, {{name}}, replaced: in one pass, since parts may contain such, too."""
    return PLACEHOLDER.sub(lambda match: parts[match[1]], template)


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table whose first column names the rows; the others hold numbers, as text."""
    head = "".join(
        f'<th scope="col"{" class=number" if i else ""}>{escape(text)}</th>' for i, text in enumerate(header)
    )
    return _table(caption, rows, head=f"<thead><tr>{head}</tr></thead>", cell_class=" class=number")


def settings_table(caption: str, values: dict[str, object]) -> str:
    """A table of names and values."""
    plain = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
    return _table(caption, list(plain.items()), table_class=' class="settings"')


def _table(
    caption: str, rows: Sequence[Sequence[object]], *, head: str = "", table_class: str = "", cell_class: str = ""
) -> str:
    """A table that scrolls sideways on a narrow screen, with the keyboard too."""
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td{cell_class}>{escape(value)}</td>" for value in rest)
        + "</tr>"
        for first, *rest in rows
    )
    content = f"<table{table_class}><caption>{escape(caption)}</caption>{head}{body}</table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">{content}</div>'


def choose_evenly(indices: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the indices, evenly spaced."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _section(section: Section) -> str:
    name = f"{section.anchor}-heading"
    heading = f'<h2 id="{name}">{escape(section.heading)}</h2>'
    return f'<section id="{section.anchor}" aria-labelledby="{name}">{heading}{section.content}</section>'


def json_text(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element that contains it, nor begin a comment in it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def content_hash(text: str) -> str:
    """The hash of a style sheet or script, as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
