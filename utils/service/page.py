"""The page of the service, and that which describes it to programs: with the style sheet and the map of report.html."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.geodesy import distance_metres
from model.recognizer import Known
from utils.retrieval.report.charts import MapFrame, escape, on_map, success_map
from utils.retrieval.report.page import FOLDER as REPORT
from utils.retrieval.report.page import content_hash, fill, json_text, table

FOLDER = Path(__file__).parent
MAX_TILE_ERROR = 0.02  # of the map's extent, by which positions in metres may be beside their degrees
TILES = "https://tile.openstreetmap.org"  # from which the page loads pictures where its user switches them on
# The page may load its own style sheet and script, and pictures of this service and of the user.
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:{tiles}; connect-src 'self'; style-src '{style}'; "
    "script-src '{script}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SelaVPR++: for programs</title>
<link rel="icon" href="data:,">
<style>{{style}}</style>
</head>
<body>
<header><h1>For programs</h1><p>{{subtitle}}</p></header>
<main>{{content}}</main>
</body>
</html>
"""


class Html(NamedTuple):
    """A page, and its Content-Security-Policy. It tells other servers where a request comes from, as OpenStreetMap
    demands, but not its path.
    """

    content: str
    policy: str

    @property
    def headers(self) -> dict[str, str]:
        """Those that it needs."""
        return {"Content-Security-Policy": self.policy, "Referrer-Policy": "strict-origin"}


class Map(NamedTuple):
    """The map of an index as HTML, and how page.js puts places and tiles on it: see onMap and tileImage there."""

    html: str
    scales: dict[str, Any]


def search_page(known: Known, count: int, examples: int) -> Html:
    """The page that searches. count: of images in the index; examples: of images to try."""
    drawn = database_map(known)
    style, script = _style() + _read("page.css"), _read("page.js")
    parts = {
        "style": style,
        "script": script,
        "subtitle": f"Drop a photo, and see which of {count:,} images show its place.",
        "map": drawn.html if drawn else "",
        "data": json_text({"examples": examples, "tiles": TILES, "map": drawn and drawn.scales}),
    }
    tiles = f" {TILES}" if drawn and drawn.scales["earth"] else ""
    policy = POLICY.format(style=content_hash(style), script=content_hash(script), tiles=tiles)
    return Html(fill(_read("page.html"), parts), policy)


def database_map(known: Known) -> Map | None:
    """The positions of an index, in metres or, where more of these are known, in degrees; None if there are none, or
    all metres are of several UTM zones.
    """
    in_metres, in_degrees = (np.isfinite(pair).all(axis=1) for pair in (known.positions, known.degrees))
    if len(set(known.zones[in_metres].tolist()) - {0}) > 1:
        in_metres[:] = False  # metres of several zones are no map
    if in_metres.any() and in_metres.sum() >= in_degrees.sum():
        places, unit, metres = known.positions[in_metres], "metres", np.ones(2)
        both = in_metres & in_degrees
        to_metres = earth_to_metres(known.degrees[both][:, ::-1], known.positions[both])
    elif in_degrees.any():
        places, unit = known.degrees[in_degrees][:, ::-1], "degrees"
        metres = metres_per_degree(places.mean(axis=0))
        to_metres = np.hstack([np.diag(metres), np.zeros((2, 1))])
    else:
        return None
    placed = places * metres
    placed = placed[on_map(placed)]
    if not len(placed):
        return None
    frame = MapFrame(placed)
    (x0, y0), (x1, y1) = frame(np.array([np.zeros(2), metres]))
    svg = success_map(f"The {len(placed)} images of the index, and what was found", frame, placed)
    earth = None
    if to_metres is not None:
        to_map = np.diag([x1 - x0, y1 - y0] / metres)
        earth = (np.hstack([to_map @ to_metres[:, :2], to_map @ to_metres[:, 2:] + [[x0], [y0]]])).tolist()
    scales = {
        **{"x": [x0, x1 - x0], "y": [y0, y1 - y0], "unit": unit, "metre": frame.units_per_metre},
        "earth": earth,
    }
    html = _read("map.html").replace("{{svg}}", svg)
    return Map(html, scales)


def earth_to_metres(degrees: np.ndarray, metres: np.ndarray) -> np.ndarray | None:
    """The affine map [2, 3] from (longitude, latitude) to positions of the same images [N, 2], in metres: a turn, as
    of a UTM zone, and a shift. None if there are fewer than two, or the metres are not those of the Earth.
    """
    if len(degrees) < 2:
        return None
    middle = degrees.mean(axis=0)
    scale = metres_per_degree(middle)
    on_earth, given = ((part - part.mean(axis=0)) @ (1, 1j) for part in ((degrees - middle) * scale, metres))
    extent = np.abs(on_earth).max()
    if extent == 0:
        return None
    turn = (on_earth.conj() @ given) / (on_earth.conj() @ on_earth)
    if np.abs(turn * on_earth - given).max() > MAX_TILE_ERROR * extent or abs(abs(turn) - 1) > MAX_TILE_ERROR:
        return None
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]]) * scale
    return np.hstack([linear, (metres.mean(axis=0) - linear @ middle)[:, None]])


def metres_per_degree(place: np.ndarray) -> np.ndarray:
    """Metres of a degree of longitude and of one of latitude [2], at a (longitude, latitude)."""
    longitude, latitude = place
    step = 1e-3
    east = distance_metres((latitude, longitude - step / 2), (latitude, longitude + step / 2))
    north = distance_metres((latitude - step / 2, longitude), (latitude + step / 2, longitude))
    return np.array([east, north]) / step


def programs_page(openapi: dict[str, Any], address: str) -> Html:
    """What the service offers to programs, with examples. openapi: its description; address: its own."""
    sections = []
    for path, methods in openapi["paths"].items():
        for method, described in methods.items():
            rows = [
                (given["name"], _describe(given["schema"]), given.get("description", ""))
                for given in described.get("parameters", ())
            ]
            parameters = (
                table(f"Parameters of {method.upper()} {path}", ("name", "value", "meaning"), rows) if rows else ""
            )
            body = " --data-binary @photo.jpg" if "requestBody" in described else ""
            command = f"curl -X {method.upper()}{body} '{address}{path.replace('{id}', '0')}'"
            sections.append(
                f"<section><h2>{escape(method.upper())} {escape(path)}</h2><p>{escape(described['description'])}</p>"
                f"{parameters}<p>Example: <code>{escape(command)}</code></p></section>"
            )
    style = _style()
    content = fill(
        DOCS,
        {
            "style": style,
            "subtitle": f'{escape(openapi["info"]["description"])} <a href="openapi.json">OpenAPI</a>, '
            '<a href=".">the page for people</a>',
            "content": "".join(sections),
        },
    )
    return Html(content, POLICY.format(style=content_hash(style), script="none", tiles=""))


def _describe(schema: dict[str, Any]) -> str:
    """The values of a parameter, in short."""
    kinds = [choice["type"] for choice in schema.get("anyOf", [schema]) if choice.get("type", "null") != "null"]
    default = f", {schema['default']} if left out" if schema.get("default") is not None else ""
    return f"{' or '.join(kinds)}{default}"


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _style() -> str:
    return (REPORT / "page.css").read_text(encoding="utf-8")
