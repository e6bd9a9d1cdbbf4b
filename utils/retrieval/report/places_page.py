"""places.html: what `datasets.places` made of a folder of photos."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.places.config import OwnPhotosConfig
from datasets.places.planning import Plan
from utils.retrieval.report.charts import Axis, MapFrame, escape, line_chart, on_map, success_map
from utils.retrieval.report.page import Page, Section, choose_evenly, settings_table, table
from utils.retrieval.report.thumbnails import thumbnails

EXAMPLES, COLUMNS = 24, 5  # places with pictures, and photos of each
NAMED = 3  # photos that are named for each reason why some are not used
LABELS = {"train": "to train on", "val": "validation", "test": "test"}


def places_page(plan: Plan, config: OwnPhotosConfig, files: dict[int, Path]) -> Page:
    """The page of a plan that has been written: map, counts, examples. files: {photo: its file}."""
    places = plan.places()
    settings = {
        "cell": f"{config.cell_size} m" + (" and 60 degrees of heading" if plan.photos.has_headings else ""),
        "groups": "cells of one group are not neighbours",
        "positions": str(config.positions),
        "headings": config.headings,
        "model": "none" if plan.threshold is None else f"{config.model}; alike from a cosine of {plan.threshold:.3f}",
    }
    heading = f"{len(places):,} places of {config.folder}"
    overview = f'<div class="columns"><div>{table("Counts", ["", ""], plan.counts())}</div>{_map(plan, places)}</div>'
    return Page(
        title=heading,
        heading=heading,
        header='<p class="soft">What became of each photo stands in photos.csv.</p>',
        before=[
            Section(anchor="map", heading="Counts and map", content=overview),
            Section(anchor="examples", heading="Places to look at", content=_examples(plan, places, files)),
            Section(anchor="sizes", heading="Photos of a place", content=_sizes(places)),
            Section(anchor="left-out", heading="Photos that are not used", content=_left_out(plan)),
            Section(anchor="settings", heading="Settings", content=settings_table("How places were made", settings)),
        ],
    )


def _map(plan: Plan, places: Sequence[Sequence[int]]) -> str:
    """The map with all photos, the middle of each place to train on, and the queries of the other parts."""
    metres = plan.photos.on_map
    rows = np.array([photo.row for photo in plan.photos.photos])
    dots = {"train": np.array([metres[rows[place]].mean(axis=0) for place in places])}
    dots |= {part: metres[rows[split.queries]] for part, split in plan.splits.items()}
    counts = {"train": f"places {LABELS['train']} ({len(places):,})"}
    counts |= {part: f"queries of the {LABELS[part]} ({len(dots[part]):,})" for part in plan.splits}
    tags = " ".join(f'<span class="tag {part}">● {text}</span>' for part, text in counts.items())
    picture = success_map(
        f"Map, north up: {', '.join(counts.values())}", MapFrame(metres), metres[on_map(metres)], **dots
    )
    return f'<div id="map-section"><p class="hint">{tags} <span class="tag">· photos</span></p>{picture}</div>'


def _examples(plan: Plan, places: Sequence[Sequence[int]], files: dict[int, Path]) -> str:
    """Photos of places of all sizes, the largest first."""
    by_size = sorted(range(len(places)), key=lambda number: -len(places[number]))
    chosen = [by_size[i] for i in choose_evenly(np.arange(len(places)), EXAMPLES)]
    shown = [choose_evenly(np.array(places[number]), COLUMNS).tolist() for number in chosen]
    pictures = iter(thumbnails([files[photo] for members in shown for photo in members]))
    cards = ""
    for number, members in zip(chosen, shown, strict=True):
        figures = "".join(f"<li>{_figure(plan, photo, next(pictures))}</li>" for photo in members)
        title = f"{files[places[number][0]].parent.name}, {len(places[number])} photos"
        cards += f'<li class="card"><h3>{escape(title)}</h3><ol class="row">{figures}</ol></li>'
    note = (
        f"{len(chosen):,} of {len(places):,} places, from the largest to the smallest, with up to {COLUMNS} photos each. "
        "The photos of a place are to show the same thing: training pulls their descriptors together."
    )
    return f'<p class="hint">{escape(note)}</p><ol id="cards">{cards}</ol>'


def _figure(plan: Plan, number: int, picture: dict[str, str]) -> str:
    photo = plan.photos.photos[number]
    name = os.path.basename(plan.photos.images.paths[photo.row])
    taken = "-".join(filter(None, (photo.taken[:4], photo.taken[4:6], photo.taken[6:8])))
    heading = "" if math.isnan(photo.heading) else f"{photo.heading:.0f}°"
    caption = ", ".join(filter(None, (taken, heading))) or "no date"
    content = (
        f'<img src="{picture["src"]}" alt="{escape(name)}" loading="lazy">'
        if "src" in picture
        else f"<p>{escape(picture['problem'])}</p>"
    )
    return (
        f'<figure title="{escape(name)}"><div class="frame">{content}</div>'
        f"<figcaption>{escape(name)}<br>{escape(caption)}</figcaption></figure>"
    )


def _sizes(places: Sequence[Sequence[int]]) -> str:
    sizes = np.sort([len(place) for place in places])
    counts = np.arange(sizes[0], sizes[-1] + 1)
    shares = 1 - np.searchsorted(sizes, counts) / len(sizes)
    span = max(int(counts[-1] - counts[0]), 1)
    ticks = sorted({int(round(counts[0] + span * i / 4)) for i in range(5)} & {*counts.tolist()})
    x = Axis("photos", [((tick - counts[0]) / span, str(tick)) for tick in ticks])
    y = Axis("places with so many or more, in %", [(i / 5, str(20 * i)) for i in range(6)])
    return line_chart("Share of places by the number of their photos", {"": ((counts - counts[0]) / span, shares)}, x=x, y=y)


def _left_out(plan: Plan) -> str:
    rows = []
    for reason, paths in plan.reasons().items():
        names = ", ".join(os.path.relpath(path, plan.photos.folder) for path in dict.fromkeys(paths[:NAMED]))
        rows.append([reason, f"{len(paths):,}", names])
    return table("Why photos are not used", ["reason", "photos", "such as"], rows) if rows else "<p>All are used.</p>"
