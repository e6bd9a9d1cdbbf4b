"""examples/teaser.py: which queries it shows, which frames are green, and its errors."""

import numpy as np
import pytest
from helpers.evaluations import flags_for
from helpers.processes import run_here, run_script
from PIL import Image

from utils.retrieval.report.pictures import CORRECT, WRONG
from utils.retrieval.report.saved_run import read_run


@pytest.fixture
def run(tiny_benchmark, checkpoints, tmp_path):
    """The folder of an evaluation."""
    result = run_script("eval_rerank.py", *flags_for(tiny_benchmark, checkpoints["two_branch"]), cwd=tmp_path)
    assert result.status == 0, result.stderr
    (folder,) = (tmp_path / "logs" / "eval").iterdir()
    return folder


def has(path, color):
    """Whether the picture has a frame of this color."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(np.asarray(Image.open(path).convert("RGB"), int) - rgb) <= 3).all(axis=2).any())


def test_it_shows_right_matches_unless_others_are_asked_for(run, tmp_path):
    correct = [predictions[0].correct for predictions in read_run(run).predictions.values()]
    wrong = correct.index(False)
    for flags, colors in (([], (True, False)), (["--queries", wrong], (False, True))):
        result = run_here("examples.teaser", run, *flags, "--output=pictures/teaser.png", cwd=tmp_path)
        assert result.status == 0, result.stderr
        picture = tmp_path / "pictures/teaser.png"
        assert (has(picture, CORRECT), has(picture, WRONG)) == colors
        columns = 1 if flags else min(4, sum(correct))
        assert 320 * columns < Image.open(picture).width < 360 * columns


def test_what_it_cannot_show_is_refused(run, tmp_path):
    for folder, flags, words in ((run, ["--queries", 99], "has 10 queries"), (tmp_path, [], "No predictions in")):
        result = run_here("examples.teaser", folder, *flags, cwd=tmp_path)
        assert result.status == 2 and words in result.stderr
    assert not (tmp_path / "teaser.jpg").exists()
