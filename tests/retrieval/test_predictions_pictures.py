"""Pictures of queries and their matches, and those of predictions with their lists (--num_preds_to_save)."""

import shutil

import numpy as np
import pytest
from helpers.reports import STAGES, make_outcome
from PIL import Image

from utils.retrieval.config import ReportConfig
from utils.retrieval.report.pictures import (
    CORRECT,
    FRAME,
    GAP,
    GREY,
    POSITIVE,
    WRONG,
    Painter,
    Shown,
    arrange,
    save_picture,
)
from utils.retrieval.report.predictions import save_pictures

WIDTH = Painter().cell[0] + 2 * FRAME + GAP


def frames(picture, color, rows=2):
    """The (row, column) of each frame of the color, or nearly, as JPEG leaves it, in a picture of so many rows."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    found = (np.abs(np.asarray(picture.convert("RGB"), int) - rgb) <= 24).all(axis=2)
    places, distance = set(), Painter().cell[1] + FRAME  # between the upper and the lower edge of a frame
    for column, x in enumerate(range(GAP, picture.width - GAP, WIDTH)):
        is_edge = found[:, x + FRAME : x + WIDTH - GAP - FRAME].mean(axis=1) > 0.8
        starts = np.flatnonzero(is_edge & ~np.append(False, is_edge[:-1])).tolist()
        upper = [y for y in starts if any(abs(y + distance - other) <= 2 for other in starts)]
        places |= {(y * rows // picture.height, column) for y in upper}
    return places


def test_each_query_has_a_picture_with_both_stages_and_a_list(tiny_benchmark, tmp_path):
    outcome = make_outcome(tiny_benchmark)
    save_pictures(tmp_path / "preds", outcome, ReportConfig(num_pictures=3))
    numbers = [f"{query:03d}" for query in range(10)]
    assert sorted(path.name for path in (tmp_path / "preds").iterdir()) == sorted(
        f"{number}.{kind}" for number in numbers for kind in ("jpg", "txt")
    )
    for query, number in list(enumerate(numbers))[::3]:
        picture = Image.open(tmp_path / "preds" / f"{number}.jpg")
        expected = {CORRECT: set(), WRONG: set(), POSITIVE: {(1, 0)}}
        for row, name in enumerate(STAGES):
            for rank, correct in enumerate(outcome.correct[name][query, :3]):
                expected[CORRECT if correct else WRONG].add((row, rank + 1))
        assert {color: frames(picture, color) for color in expected} == expected


def test_the_list_is_that_of_vpr_methods_evaluation(tiny_benchmark, tmp_path):
    outcome = make_outcome(tiny_benchmark)
    save_pictures(tmp_path / "preds", outcome, ReportConfig(num_pictures=2))
    benchmark = outcome.benchmark
    for query in (0, 9):  # the last one has no positives
        lines = ["Query path:", f"{benchmark.queries.paths[query]}\n", "Predictions paths:"]
        lines.append("\n".join(benchmark.database.paths[i] for i in outcome.last.indices[query][:2]) + "\n")
        lines += ["Positives paths:", "\n".join(benchmark.database.paths[i] for i in benchmark.positives[query]) + "\n"]
        assert (tmp_path / "preds" / f"{query:03d}.txt").read_text() == "\n".join(lines)


def test_only_queries_whose_first_prediction_is_wrong(tiny_benchmark, tmp_path):
    outcome = make_outcome(tiny_benchmark)
    save_pictures(tmp_path / "preds", outcome, ReportConfig(num_pictures=2, only_wrong=True))
    wrong = [i for i, path in enumerate(outcome.benchmark.queries.paths) if not outcome.last_correct[i, 0]]
    assert 0 < len(wrong) < 10
    assert sorted(path.stem for path in (tmp_path / "preds").glob("*.jpg")) == [f"{i:03d}" for i in wrong]


def test_without_labels_frames_are_grey(tiny_benchmark, tmp_path):
    save_pictures(tmp_path / "preds", make_outcome(tiny_benchmark, labels=False), ReportConfig(num_pictures=2))
    picture = Image.open(tmp_path / "preds" / "000.jpg")
    assert not any(frames(picture, color) for color in (CORRECT, WRONG, POSITIVE))
    assert frames(picture, GREY) == {(row, column) for row in (0, 1) for column in (1, 2)}


def test_an_image_that_cannot_be_read_is_a_frame_that_says_so(tiny_benchmark, tmp_path):
    shutil.copytree(tiny_benchmark, tmp_path / "copy")
    outcome = make_outcome(tmp_path / "copy")
    for path in outcome.benchmark.database.paths:
        open(path, "wb").close()
    save_pictures(tmp_path / "preds", outcome, ReportConfig(num_pictures=2))
    assert len(list((tmp_path / "preds").glob("*.jpg"))) == 10


@pytest.mark.parametrize(("predictions", "rows", "columns"), [(1, 1, 3), (10, 1, 12), (11, 2, 11), (25, 3, 11)])
def test_long_rows_are_broken_and_long_names_are_cut(tmp_path, predictions, rows, columns):
    image, path = tmp_path / "grey.png", tmp_path / "picture.png"
    Image.new("RGB", (50, 200), "grey").save(image)
    left = [Shown(image, ("Query", "name\n\x1b " * 30), "query"), Shown(None, ("", ""), "positive")]
    arranged = arrange(left, [[Shown(image, ("0.5", "12 m"), "wrong")] * predictions], 10)
    save_picture(Painter().draw(arranged), path)
    picture = Image.open(path)
    assert picture.format == "PNG" and picture.width == columns * WIDTH + GAP
    assert len(arranged) == rows and len(frames(picture, WRONG, rows)) == predictions
