"""places.html: what `datasets.places` made of a folder of photos."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.places.config import OwnPhotosConfig
from datasets.places.planning import Plan
from utils.retrieval.report.charts import Axis, MapFrame, escape, line_chart, success_map
from utils.retrieval.report.page import Page, Section, choose_evenly, settings_table, table
from utils.retrieval.report.thumbnails import thumbnails

EXAMPLES, COLUMNS = 24, 5  # places with pictures, and photos of each
MAPS, AREA_METRES = 4, 5000
NAMED = 3  # photos that are named for each reason why some are not used
LABELS = {"val": "the validation", "test": "the test"}


def places_page(plan: Plan, config: OwnPhotosConfig, files: dict[int, Path]) -> Page:
    """The page of a plan that has been written: map, counts, examples. files: {photo: its file}."""
    places = plan.places()
    settings: dict[str, object] = {
        "cell": f"{config.cell_size} m" + (" and 60 degrees of heading" if plan.photos.has_headings else ""),
        "positions": str(config.positions),
        "headings": config.headings,
        "model": "none" if plan.threshold is None else f"{config.model}; alike from a cosine of {plan.threshold:.3f}",
    }
    heading = f"{len(places):,} places of {config.folder}"
    counts = settings_table("Counts", plan.counts())
    overview = f'<div class="columns"><div>{counts}</div>{_maps(plan, places)}</div>'
    return Page(
        title=heading,
        heading=heading,
        header='<p class="soft">What became of each photo stands in photos.csv.</p>',
        before=[
            Section(anchor="counts", heading="Counts and map", content=overview),
            Section(anchor="examples", heading="Places to look at", content=_examples(plan, places, files)),
            Section(anchor="sizes", heading="Photos of a place", content=_sizes(places)),
            Section(anchor="left-out", heading="Photos that are not used", content=_left_out(plan)),
            Section(anchor="settings", heading="Settings", content=settings_table("How places were made", settings)),
        ],
    )


def _maps(plan: Plan, places: Sequence[Sequence[int]]) -> str:
    """Maps of the largest areas, with all photos, the middles of places to train on, and the other parts' queries."""
    metres = plan.photos.on_map
    rows = np.array([photo.row for photo in plan.photos.photos])
    dots = {"train": np.array([metres[rows[place]].mean(axis=0) for place in places])}
    dots |= {part: metres[rows[split.queries]] for part, split in plan.splits.items()}
    texts = {"train": f"places to train on ({len(places):,})"}
    texts |= {part: f"queries of {LABELS[part]} ({len(dots[part]):,})" for part in plan.splits}
    tags = " ".join(f'<span class="tag {part}">● {text}</span>' for part, text in texts.items())
    areas = _areas(metres)
    pictures = ""
    for number, area in enumerate(areas[:MAPS]):
        inside = {part: points[_is_in(points, area)] for part, points in dots.items()}
        named = ", ".join(f"{len(points):,} {part}" for part, points in inside.items())
        name = f"Map {number + 1} of {len(areas)}: {len(area):,} photos, {named}"
        pictures += success_map(name, MapFrame(area), area, selectable=False, **inside)
    note = f"The photos lie in {len(areas)} areas far from each other." if len(areas) > 1 else ""
    note += f" The largest {MAPS} are shown." if len(areas) > MAPS else ""
    legend = f'<p class="hint">{tags} <span class="tag">· photos</span> {note}</p>'
    return f'<div id="map-section">{legend}{pictures}</div>'


def _areas(metres: np.ndarray) -> list[np.ndarray]:
    """The positions [n, 2] of each area, the largest first. Between two areas are 5 km without photos, or more."""
    squares, square_of = np.unique(metres // AREA_METRES, axis=0, return_inverse=True)
    numbers = {tuple(square): i for i, square in enumerate(squares.astype(int).tolist())}
    areas: list[list[int]] = []
    while numbers:
        pending, area = [numbers.popitem()], list[int]()
        while pending:
            (x, y), i = pending.pop()
            area.append(i)
            around = [(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
            pending += [(square, numbers.pop(square)) for square in around if square in numbers]
        areas.append(area)
    found = [metres[np.isin(square_of.reshape(-1), area)] for area in areas]
    return sorted(found, key=len, reverse=True)


def _is_in(points: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Which points [n, 2] lie in the rectangle around an area. bool [n]."""
    return ((points >= area.min(axis=0)) & (points <= area.max(axis=0))).all(axis=1)


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
        f"{len(chosen):,} of {len(places):,} places, from the largest to the smallest, with up to {COLUMNS} photos "
        "each. The photos of a place are to show the same thing: training pulls their descriptors together."
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
    return line_chart(
        "Share of places by the number of their photos", {"": ((counts - counts[0]) / span, shares)}, x=x, y=y
    )


def _left_out(plan: Plan) -> str:
    rows = []
    for reason, paths in plan.reasons().items():
        names = ", ".join(os.path.relpath(path, plan.photos.folder) for path in dict.fromkeys(paths[:NAMED]))
        rows.append([reason, f"{len(paths):,}", names])
    return table("Why photos are not used", ["reason", "photos", "such as"], rows) if rows else "<p>All are used.</p>"
