"""The pages of the service: the map, and what programs are told."""

import html
import re

import numpy as np
import pytest

from model.geodesy import local_metres
from model.recognizer import Known
from utils.service.page import database_map, programs_page, search_page

UNKNOWN = np.full((40, 2), np.nan)


def known(positions=UNKNOWN, degrees=UNKNOWN, zones=0):
    count = len(positions)
    zones = np.broadcast_to(np.array(zones, np.int8), count)
    return Known(np.arange(count), positions, degrees, np.full(count, np.nan), zones)


def dots(drawn):
    return {tuple(map(int, dot)) for dot in re.findall(r"M(\d+) (\d+)h0", drawn.html)}


def scaled(drawn, places):
    """Places (x, y) as page.js puts them on the map."""
    (x0, x), (y0, y) = drawn.scales["x"], drawn.scales["y"]
    return np.stack([x0 + x * places[:, 0], y0 + y * places[:, 1]], axis=1)


def require_dots_at(drawn, places):
    cells = {tuple(cell) for cell in ((scaled(drawn, places) / 2).round().astype(int) * 2).tolist()}
    assert len(cells - dots(drawn)) <= len(cells) // 10  # of some, the last bit decides the cell


def test_a_map_of_metres_and_of_degrees():
    random = np.random.default_rng(0)
    positions = random.uniform(0, 1000, (40, 2)) + (5e5, 4.6e6)
    drawn = database_map(known(positions))
    assert drawn.scales["unit"] == "metres" and drawn.scales["metre"] == pytest.approx(drawn.scales["x"][1])
    require_dots_at(drawn, positions)
    degrees = random.uniform(0, 0.01, (40, 2)) + (47.3, 8.5)
    drawn = database_map(known(degrees=degrees))
    assert drawn.scales["unit"] == "degrees"
    require_dots_at(drawn, degrees[:, ::-1])
    true = np.linalg.norm(local_metres(degrees, degrees[0]), axis=1)
    shown = scaled(drawn, degrees[:, ::-1])
    ours = np.linalg.norm(shown - shown[0], axis=1) / drawn.scales["metre"]
    np.testing.assert_allclose(ours, true, rtol=1e-3)


def test_metres_of_several_zones_are_no_map():
    positions, degrees = np.ones((40, 2)), np.full((40, 2), 47.0)
    assert database_map(known(positions, zones=[31, 32] * 20)) is None
    assert database_map(known(positions, degrees, zones=[31, 32] * 20)).scales["unit"] == "degrees"
    assert database_map(known(positions, degrees, zones=31)).scales["unit"] == "metres"
    assert database_map(known()) is None
    assert '"map":null' in search_page(known(), 40, 0).content


def test_places_on_the_earth_are_on_the_map_where_their_positions_are():
    """Of a UTM zone, whose north is turned against that of the map by the convergence of its meridians."""
    random = np.random.default_rng(0)
    degrees = random.uniform(0, 0.02, (40, 2)) + (47.3, 10.5)
    angle, longitudes_and_latitudes = np.radians(1.2), np.c_[degrees[:, ::-1], np.ones(40)]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    positions = local_metres(degrees, degrees[0]) @ turn.T * 0.9997 + (6.2e5, 5.2e6)
    for drawn in (database_map(known(positions, degrees)), database_map(known(degrees=degrees))):
        places = positions if drawn.scales["unit"] == "metres" else degrees[:, ::-1]
        found = longitudes_and_latitudes @ np.array(drawn.scales["earth"]).T
        np.testing.assert_allclose(found, scaled(drawn, places), atol=0.5)  # of 640 units
    mirrored = database_map(known(positions * (1, -1), degrees))
    assert mirrored.scales["earth"] is None and "openstreetmap" not in search_page(known(positions), 40, 0).policy
    assert database_map(known(positions * 2, degrees)).scales["earth"] is None
    page = search_page(known(positions, degrees), 40, 0)
    assert "img-src 'self' blob: data: https://tile.openstreetmap.org;" in page.policy


def test_an_index_without_images_has_a_page():
    nothing = np.empty((0, 2))
    assert "which of 0 images" in search_page(known(nothing, nothing), 0, 3).content


def test_programs_are_told_of_every_request():
    parameter = {"name": "k", "schema": {"type": "integer", "default": 5}, "description": "matches <b>"}
    paths = {"/search": {"post": {"description": "Find.", "parameters": [parameter], "requestBody": {}}}}
    page = programs_page({"info": {"description": "d"}, "paths": paths}, "http://localhost:1").content
    assert "curl -X POST --data-binary @photo.jpg 'http://localhost:1/search'" in html.unescape(page)
    assert "matches &lt;b&gt;" in page and "integer, 5 if left out" in page
