"""benchmarks/real.py end to end, on photos of `make try` in two of its layouts."""

import csv
import json
import shutil

import pytest
from helpers.evaluations import Outcome
from helpers.processes import run_script

from examples.try_model import IMAGES, MODEL

FLAGS = ["--num_workers=0", "--device=cpu"]


@pytest.fixture
def datasets(tmp_path):
    """Corridor in the benchmark layout; essex3in1 as two folders with positions.csv, without a right match."""
    folder = tmp_path / "datasets"
    shutil.copytree(IMAGES, folder / "corridor" / "images" / "test")
    rows = [("image", "easting", "northing")]
    for part, target, easting in (("database", "ref", 500_000), ("queries", "query", 600_000)):
        (folder / "essex3in1" / target).mkdir(parents=True)
        for i, path in enumerate(sorted((IMAGES / part).iterdir())):
            shutil.copy(path, folder / "essex3in1" / target / f"{i}.jpg")
            rows.append((f"{target}/{i}.jpg", easting, 0))
    with open(folder / "essex3in1" / "positions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.mark.slow
def test_recalls_are_those_of_an_evaluation_beside_figures_of_the_sets_that_are_there(tmp_path, datasets):
    pytest.importorskip("safetensors")
    flags = [f"--datasets_folder={datasets}", "--models", MODEL, "--json=table.json", *FLAGS]
    result = run_script("benchmarks.real", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert "gardens_point is missing" in result.stdout
    rows = {row.pop("method"): row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert rows["NetVLAD (stored scores of VPR-Bench)"] == {"corridor": "67.6 (93.7, 99.1)"}
    assert rows["HOG (measured elsewhere)"] == {"corridor": "35.1 (64.9, 77.5)", "essex3in1": "6.2"}
    assert not any("DINOv2" in name for name in rows)  # whose figures are of ie_tower

    flags = [f"--datasets_folder={datasets}", "--dataset_name=corridor", f"--model={MODEL}", *FLAGS]
    recalls = Outcome(run_script("eval_rerank.py", *flags, cwd=tmp_path), tmp_path).results["recalls"]
    first, fifth, tenth = (recalls[n] for n in ("1", "5", "10"))
    expected = {"corridor": f"{first:.1f} ({fifth:.1f}, {tenth:.1f})", "essex3in1": "0.0 (0.0, 0.0)"}
    assert rows[f"{MODEL}, 42 x 56"] == expected


@pytest.mark.slow
def test_a_folder_without_any_of_the_sets_is_refused(tmp_path):
    result = run_script("benchmarks.real", f"--datasets_folder={tmp_path}", *FLAGS, cwd=tmp_path)
    assert result.status == 2
    assert "holds none of corridor, gardens_point, essex3in1, ie_tower" in result.stderr
