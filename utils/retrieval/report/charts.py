"""Charts as SVG, with the classes that page.html styles. They need no script and no library.

Each is an image with a name for screen readers; the figures are in tables beside them. Texts are escaped.
"""

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.runtime.terminal import printable

WIDTH, HEIGHT = 440, 260  # of charts, in units that are about a pixel
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 12, 40  # margins
MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 640, 480, 12
MAX_METRES = 1e8  # of positions on a map: UTM's northings end at 1e7
MAP_CELL = 2  # database images in one cell of this size are one dot, so that millions of them stay a small file


def escape(text: object) -> str:
    """Text for HTML: with markup and control characters escaped."""
    return html.escape(printable(text))


class Axis(NamedTuple):
    """An axis: its label, and its ticks as (position from 0 to 1, text)."""

    label: str
    ticks: Sequence[tuple[float, str]]


def line_chart(name: str, lines: dict[str, tuple[np.ndarray, np.ndarray]], *, x: Axis, y: Axis) -> str:
    """lines: {label: (x, y)}, both from 0 to 1. A legend follows if there are several."""
    paths = []
    for i, points in enumerate(lines.values()):
        steps = " ".join(f"{_x(px):.1f},{_y(py):.1f}" for px, py in zip(*points, strict=True))
        paths.append(f'<polyline class="line line{i % 4}" points="{steps}"/>')
        if len(points[0]) == 1:
            paths.append(f'<circle class="dot line{i % 4}" cx="{_x(points[0][0]):.1f}" cy="{_y(points[1][0]):.1f}"/>')
    return _svg(name, _axes(x, y) + "".join(paths)) + (_legend(list(lines)) if len(lines) > 1 else "")


def round_ticks(low: float, high: float, most: int, least: float = 0.0) -> np.ndarray:
    """Multiples of 1, 2 or 5 times a power of ten, the first at most `low`, the last above `high`: steps of `least` or
    more, at most `most` >= 4. For finite low <= high.
    """
    span = max(high - low, 1e-5 * max(abs(low), abs(high)), 1e-9)
    power = 10.0 ** np.floor(np.log10(max(span / most, least)))
    for step in (power * factor for factor in (1, 2, 5, 10, 20)):
        first, last = np.floor(low / step), np.floor(high / step) + 1
        if last - first <= most and step >= least:
            break
    return np.arange(first, last + 1) * step


def mirrored_histogram(name: str, above: tuple[str, np.ndarray], below: tuple[str, np.ndarray], *, x: Axis) -> str:
    """Two rows of B counts as bars upwards and downwards from a common line, on one scale, with a label each."""
    middle, reach = TOP + (HEIGHT - TOP - BOTTOM) / 2, (HEIGHT - TOP - BOTTOM) / 2 - 14
    width = (WIDTH - LEFT - RIGHT) / len(above[1])
    highest = max(above[1].max(), below[1].max(), 1)
    bars = []
    for kind, (_, counts), sign in (("correct", above, -1), ("wrong", below, 1)):
        for i, count in enumerate(counts.tolist()):
            if count:
                height, start = count / highest * reach, LEFT + i * width
                top, end = (middle, middle + height + 11) if sign > 0 else (middle - height, middle - height - 3)
                size = f'width="{max(width - 1, 1):.1f}" height="{height:.1f}"'
                bars.append(f'<rect class="bar {kind}" x="{start:.1f}" y="{top:.1f}" {size}/>')
                text = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
                place = f'class="count" x="{start + width / 2:.1f}" y="{end:.1f}" text-anchor="middle"'
                bars.append(f"<text {place}>{text}</text>")
    texts = "".join(
        f'<text x="{LEFT - 6}" y="{y:.0f}" text-anchor="end">{escape(line)}</text>'
        for (label, _), start in ((above, TOP + 12), (below, HEIGHT - BOTTOM - 20))
        for line, y in zip(label.split("\n"), (start, start + 15), strict=False)
    )
    base = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{middle}" y2="{middle}"/>'
    return _svg(name, _axes(x, Axis("", [])) + "".join(bars) + base + texts)


def on_map(utms: np.ndarray) -> np.ndarray:
    """Which positions [N, 2] a map can show, bool [N]: known ones, in metres that the Earth has room for."""
    return (np.abs(utms) < MAX_METRES).all(axis=1)


class MapFrame:
    """Places positions on a map, north up, with one scale for both axes. height: of the map, in its units.

    utms [N, 2]: what the map must have room for, N > 0 positions that `on_map` accepts.
    """

    def __init__(self, utms: np.ndarray) -> None:
        low, high = utms.min(axis=0), utms.max(axis=0)
        extent = np.maximum(high - low, 1e-3)
        inner = np.array([MAP_WIDTH - 2 * MAP_MARGIN, MAP_HEIGHT - 2 * MAP_MARGIN])
        self.units_per_metre = float((inner / extent).min())
        self.height = int(np.clip(extent[1] * self.units_per_metre + 2 * MAP_MARGIN, 60, MAP_HEIGHT))
        self._centre = (low + high) / 2

    def __call__(self, utms: np.ndarray) -> np.ndarray:
        """Positions [N, 2] in metres -> [N, 2] on the map, x to the right and y down."""
        offset = (utms - self._centre) * self.units_per_metre * (1, -1)
        return offset + (MAP_WIDTH / 2, self.height / 2)

    def scale_bar(self) -> tuple[float, str]:
        """The length of a round number of metres, at most a quarter of the width, and its text."""
        most = MAP_WIDTH / 4 / self.units_per_metre
        power = 10.0 ** np.floor(np.log10(most))
        metres = max(step * power for step in (1, 2, 5) if step * power <= most)
        return metres * self.units_per_metre, f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"


def success_map(
    name: str, frame: MapFrame, database: np.ndarray, *, selectable: bool = True, **queries: np.ndarray
) -> str:
    """Dots for database images [N, 2], in metres, and for the queries of each kind, {kind: [Q, 2]}: crosses for the
    wrong ones, dots for all others. selectable: it is the one map of a page on which a script marks what is selected.
    """
    cells = np.unique((frame(database) / MAP_CELL).round().astype(int), axis=0) * MAP_CELL
    dots = "".join(f"M{x} {y}h0" for x, y in cells)
    marks = ""
    for kind, utms in queries.items():
        dot = "M{:.1f} {:.1f}l8 8m0-8l-8 8" if kind == "wrong" else "M{:.1f} {:.1f}h0"
        points = frame(utms) - (4 if kind == "wrong" else 0)
        marks += f'<path class="{kind}" d="{"".join(dot.format(*point) for point in points)}"/>'
    length, text = frame.scale_bar()
    start = MAP_WIDTH - MAP_MARGIN - length
    anchor, selected = (' id="map"', '<g id="selected"></g>') if selectable else ("", "")
    return (
        f'<svg{anchor} class="map" viewBox="0 0 {MAP_WIDTH} {frame.height + 24}" role="img"'
        f' aria-label="{escape(name)}">'
        f'<path class="database" d="{dots}"/>{marks}'
        f'<path class="scale" d="M{start:.1f} {frame.height + 2}v6h{length:.1f}v-6"/>'
        f'<text x="{start - 6:.1f}" y="{frame.height + 12}" text-anchor="end">{text}</text>'
        f"{selected}</svg>"
    )


def _svg(name: str, content: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{content}</svg>'


def _axes(x: Axis, y: Axis) -> str:
    parts = []
    for position, text in y.ticks:
        at = _y(position)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for position, text in x.ticks:
        at = _x(position)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{escape(text)}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    if y.label:
        turned = f'transform="translate(12 {TOP + (HEIGHT - TOP - BOTTOM) / 2}) rotate(-90)"'
        parts.append(f'<text {turned} text-anchor="middle">{escape(y.label)}</text>')
    return "".join(parts)


def _legend(labels: list[str]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 32 8" aria-hidden="true"><polyline class="line line{i % 4}" points="1,4 31,4"/></svg>'
        f"{escape(label)}</li>"
        for i, label in enumerate(labels)
    )
    return f'<ul class="legend">{items}</ul>'


def _x(position: float) -> float:
    return LEFT + position * (WIDTH - LEFT - RIGHT)


def _y(position: float) -> float:
    return HEIGHT - BOTTOM - position * (HEIGHT - TOP - BOTTOM)
