"""What `make try` runs on, in assets/try, and examples/try_it.py, which runs on it without a network."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import run_script
from PIL import Image

from datasets.synthetic.city import write_benchmark_place
from examples import try_it
from examples.demo import CITY, QUICK, SYNTHETIC
from examples.try_model import ASSETS, IMAGES, MODEL, PHOTOS, PLACES, RECIPE
from model import ModelConfig
from model.weights import load_any_model
from utils.retrieval.index import Index

MAX_BYTES = 3_000_000
PAGE_LINE = re.compile(r"^  (/.*report\.html)$", re.MULTILINE)


def test_the_model_and_the_photos_are_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= MAX_BYTES
    pytest.importorskip("safetensors")
    assert load_any_model(str(MODEL)).config == ModelConfig(backbone="vit-pico", hashing=True, rerank=True)


def test_the_photos_are_those_of_the_command(tmp_path):
    for name in ("database", "queries"):
        (tmp_path / name).mkdir()
        assert len(list((IMAGES / name).iterdir())) == len(PLACES)
    write_benchmark_place(PLACES[1], images=tmp_path, split="test", config=PHOTOS)
    drawn = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.jpg")]
    assert len(drawn) == 2
    for name in drawn:  # another version of Pillow or NumPy rounds otherwise
        ours, again = (np.asarray(Image.open(folder / name), float) for folder in (IMAGES, tmp_path))
        assert ours.shape == (240, 320, 3) and np.abs(ours - again).mean() < 1


@pytest.mark.slow
def test_it_indexes_searches_and_evaluates_without_a_network(tmp_path):
    pytest.importorskip("safetensors")
    nowhere = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https")}  # where nothing listens
    env = {**nowhere, "TORCH_HOME": str(tmp_path / "downloads"), "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # the second time over the first
        result = run_script("examples.try_it", "--no_browser", cwd=tmp_path, env=env)
        assert result.status == 0, result.stderr
    assert not (tmp_path / "downloads").exists()
    (page,) = PAGE_LINE.findall(result.stdout)
    assert page.startswith(str(tmp_path)) and "<html" in Path(page).read_text(encoding="utf-8")
    results = json.loads(Path(page).with_name("results.json").read_text())
    assert len(Index(tmp_path / "try" / "index")) == results["database"] == results["queries"] == len(PLACES)
    assert results["recalls"]["1"] >= 80 and f"R@1: {results['recalls']['1']:.1f}" in result.stdout


@pytest.mark.parametrize(
    ("platform", "variables", "shown"),
    [("linux", [], False), ("linux", ["DISPLAY"], True), ("linux", ["WAYLAND_DISPLAY"], True), ("darwin", [], True)],
)
def test_the_report_opens_where_a_window_can(monkeypatch, platform, variables, shown):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, ":0")
    monkeypatch.setattr(try_it.sys, "platform", platform)
    assert try_it.has_display() is shown


@pytest.mark.slow
@pytest.mark.proof
def test_the_model_finds_three_places_of_four_of_the_demos_city(tmp_path):
    """It draws the test places alone: they do not depend on the others."""
    pytest.importorskip("safetensors")
    city = [*QUICK.city, *CITY, "--places=1", "--cities=1", "--val_places=1"]
    result = run_script("datasets.synthetic", "city", *city, cwd=tmp_path)
    assert result.status == 0, result.stderr
    result = run_script("eval_rerank.py", *RECIPE.all_scripts, *SYNTHETIC, f"--resume={MODEL}", cwd=tmp_path)
    assert result.status == 0, result.stderr
    (results,) = tmp_path.glob("logs/eval/*/results.json")
    found = json.loads(results.read_text())
    assert found["queries"] == 400 and found["recalls"]["1"] >= 75
