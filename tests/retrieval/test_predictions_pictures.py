"""Pictures of predictions and their lists (--num_preds_to_save)."""

import shutil

import numpy as np
import pytest
from helpers.reports import STAGES, make_evaluation
from PIL import Image

from utils import visualization
from utils.retrieval.config import ReportConfig
from utils.retrieval.report.predictions import save_pictures


def pixels(path, color):
    """Where the picture has the color, or nearly, as JPEG leaves it: bool [H, W]."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(np.asarray(Image.open(path).convert("RGB"), int) - rgb) <= 24).all(axis=2)


def frames(path, color, size):
    """The (line, column) of each cell whose upper edge has the color."""
    found = pixels(path, color)
    width, height = CELL[0] + 2 * FRAME + GAP, CELL[1] + 2 * FRAME + 3 * LINE + GAP
    edges = {}
    for line in range(size[0]):
        for column in range(size[1]):
            y, x = GAP + line * height + LINE, GAP + column * width
            edges[line, column] = found[y + 1 : y + FRAME - 1, x + FRAME : x + width - GAP - FRAME].mean()
    return {place for place, share in edges.items() if share > 0.8}


def test_each_query_has_a_picture_with_both_stages_and_a_list(tiny_benchmark, tmp_path):
    evaluation = make_evaluation(tiny_benchmark)
    save_pictures(tmp_path / "preds", evaluation, ReportConfig(num_pictures=3))
    numbers = [f"{query:03d}" for query in range(10)]
    assert sorted(path.name for path in (tmp_path / "preds").iterdir()) == sorted(
        f"{number}.{kind}" for number in numbers for kind in ("jpg", "txt")
    )
    for query, number in enumerate(numbers):
        path = tmp_path / "preds" / f"{number}.jpg"
        expected = {CORRECT: set(), WRONG: set(), POSITIVE: {(1, 0)}}
        for line, name in enumerate(STAGES):
            for rank, correct in enumerate(evaluation.correct[name][query, :3]):
                expected[CORRECT if correct else WRONG].add((line, rank + 1))
        assert {color: frames(path, color, (2, 4)) for color in expected} == expected


def test_the_list_is_that_of_vpr_methods_evaluation(tiny_benchmark, tmp_path):
    evaluation = make_evaluation(tiny_benchmark)
    save_pictures(tmp_path / "preds", evaluation, ReportConfig(num_pictures=2))
    benchmark = evaluation.benchmark
    for query in (0, 9):  # the last one has no positives
        lines = ["Query path:", f"{benchmark.queries.paths[query]}\n", "Predictions paths:"]
        lines.append("\n".join(benchmark.database.paths[i] for i in evaluation.last.indices[query][:2]) + "\n")
        lines += ["Positives paths:", "\n".join(benchmark.database.paths[i] for i in benchmark.positives[query]) + "\n"]
        assert (tmp_path / "preds" / f"{query:03d}.txt").read_text() == "\n".join(lines)


def test_only_queries_whose_first_prediction_is_wrong(tiny_benchmark, tmp_path):
    evaluation = make_evaluation(tiny_benchmark)
    save_pictures(tmp_path / "preds", evaluation, ReportConfig(num_pictures=2, only_wrong=True))
    wrong = [i for i, path in enumerate(evaluation.benchmark.queries.paths) if not evaluation.last_correct[i, 0]]
    assert 0 < len(wrong) < 10
    assert sorted(path.stem for path in (tmp_path / "preds").glob("*.jpg")) == [f"{i:03d}" for i in wrong]


def test_without_labels_frames_are_grey(tiny_benchmark, tmp_path):
    save_pictures(tmp_path / "preds", make_evaluation(tiny_benchmark, labels=False), ReportConfig(num_pictures=2))
    picture = tmp_path / "preds" / "000.jpg"
    assert not any(frames(picture, color, (2, 3)) for color in (CORRECT, WRONG, POSITIVE))
    assert frames(picture, visualization.GREY, (2, 3)) == {(line, column) for line in (0, 1) for column in (1, 2)}


def test_an_image_that_cannot_be_read_is_an_empty_frame(tiny_benchmark, tmp_path):
    shutil.copytree(tiny_benchmark, tmp_path / "copy")
    evaluation = make_evaluation(tmp_path / "copy")
    for path in evaluation.benchmark.database.paths:
        open(path, "wb").close()
    save_pictures(tmp_path / "preds", evaluation, ReportConfig(num_pictures=2))
    assert len(list((tmp_path / "preds").glob("*.jpg"))) == 10


@pytest.mark.parametrize(("predictions", "size"), [(1, (1, 3)), (10, (1, 12)), (11, (2, 11)), (25, (3, 11))])
def test_long_rows_are_broken_and_long_names_are_cut(tmp_path, predictions, size):
    image, path = tmp_path / "grey.png", tmp_path / "picture.jpg"
    Image.new("RGB", (50, 200), "grey").save(image)
    left = [Framed(image, ("Query", "name\n\x1b " * 30), "query"), Framed(None, ("", ""), "positive")]
    draw_predictions(path, left, {"Float": [Framed(image, ("0.5", "12 m"), "wrong")] * predictions})
    assert len(frames(path, WRONG, size)) == predictions
    assert Image.open(path).size[0] == size[1] * (CELL[0] + 2 * FRAME + GAP) + GAP
