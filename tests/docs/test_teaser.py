"""examples/teaser.py on the tiny benchmark: which queries it chooses, which frames are green, and its errors."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
from helpers.evaluations import flags_for
from PIL import Image

from datasets.file_names import utm_position
from examples import teaser
from model import InputError
from utils.cli.evaluation import TwoBranchEvaluation
from utils.retrieval.extraction import extract
from utils.retrieval.report.pictures import CORRECT, WRONG, Painter
from utils.runtime.parser import parse


@pytest.fixture
def demo(tmp_path, tiny_benchmark, checkpoints, monkeypatch):
    """A folder like the demo's: images, a two-branch model, and the results of evaluating it."""
    folder = tmp_path / "demo"
    run = folder / "logs" / "two_stage" / "2026-01-01_00-00-00"
    run.mkdir(parents=True)
    shutil.copytree(tiny_benchmark, folder / "city")
    shutil.copy(checkpoints["two_branch"], folder / "model.pth")
    flags = flags_for("city", "model.pth", "--hashing", "--rerank")
    monkeypatch.setattr(sys, "argv", ["eval_rerank.py", *map(str, flags)])
    monkeypatch.chdir(folder)  # the demo runs the scripts in its folder
    arguments = parse(TwoBranchEvaluation, "").flags
    (run / "results.json").write_text(json.dumps({"arguments": arguments, "folder": str(folder)}))
    monkeypatch.chdir(tmp_path)
    return folder


def run_teaser(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["teaser.py", *map(str, flags)])
    teaser.main()


def pixels(path, color):
    """Where the picture has the color, or nearly: bool [H, W]."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(np.asarray(Image.open(path).convert("RGB"), int) - rgb) <= 3).all(axis=2)


def test_it_draws_queries_that_reranking_corrects_with_green_frames_within_25_metres(demo, tmp_path, monkeypatch):
    random, drawn = np.random.default_rng(0), []

    def extract_with_random_codes(*args):  # their first matches are wrong, unlike those of the model's codes
        features = extract(*args)
        return features._replace(codes=random.integers(0, 256, features.codes.shape, np.uint8))

    def spy(painter, rows, *, note):
        drawn.append((rows, note))
        return draw(painter, rows, note=note)

    draw = Painter.draw
    monkeypatch.setattr(teaser, "extract", extract_with_random_codes)
    monkeypatch.setattr(Painter, "draw", spy)
    output = tmp_path / "assets" / "teaser.png"
    run_teaser(monkeypatch, demo, "--output", output)

    ((rows, note),) = drawn
    assert len(rows) == 3
    for query, gap, *row in rows:
        by_codes, second_gap, reranked = row[:5], row[5], row[6:]
        assert gap is second_gap is None and len(reranked) == 5
        for shown in by_codes + reranked:
            is_near = math.dist(utm_position(query.image), utm_position(shown.image)) <= 25
            assert shown.kind == ("correct" if is_near else "wrong")
        assert (by_codes[0].kind, reranked[0].kind) == ("wrong", "correct")
    assert "within 25 m" in note and "Selected examples" in note
    assert pixels(output, CORRECT).any() and pixels(output, WRONG).any()
    assert Image.open(output).size[0] == 1791 and output.stat().st_size < 300_000


def test_the_choice_is_evenly_spaced_among_the_queries_that_reranking_corrects():
    correct_codes = np.ones((12, 5), bool)
    correct_reranked = correct_codes.copy()
    correct_codes[[1, 2, 5, 6, 9, 11], 0] = False
    correct_reranked[11, 0] = False  # wrong before and after
    correct_reranked[0, 0] = False  # spoilt
    assert teaser.choose_queries(correct_codes, correct_reranked).tolist() == [1, 5, 9]
    correct_codes[[1, 2, 5], 0] = True
    assert teaser.choose_queries(correct_codes, correct_reranked).tolist() == [6, 9]
    with pytest.raises(InputError, match="None of the 12 queries"):
        teaser.choose_queries(correct_codes, correct_codes)


def test_a_folder_without_a_demo(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="No results of the demo in .*make demo"):
            run_teaser(monkeypatch, folder, "--output", tmp_path / "teaser.png")
    assert not (tmp_path / "teaser.png").exists()
