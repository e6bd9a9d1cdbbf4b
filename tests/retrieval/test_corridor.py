"""The three scripts on real photos, Milford's corridor, in minutes; needs CORRIDOR_DATASETS_FOLDER."""

import json
import os

import pytest
from helpers.checkpoints import save_published
from helpers.models import MODES, reference_model
from helpers.processes import run_script

pytestmark = pytest.mark.slow

DATASETS = os.environ.get("CORRIDOR_DATASETS_FOLDER")
SCRIPTS = {"float": "eval.py", "hashing": "eval_hashing.py", "two_branch": "eval_rerank.py"}
EXPECTED = {
    "float": [24.32, 46.85, 63.06, 81.98],
    "hashing": [25.23, 52.25, 67.57, 83.78],
    "two_branch": [27.93, 50.45, 65.77, 83.78],
}


@pytest.mark.skipif(
    not DATASETS, reason="CORRIDOR_DATASETS_FOLDER does not name the folder that holds the dataset `corridor`"
)
@pytest.mark.parametrize(("mode", "numpy_version"), [("float", 1), ("hashing", 2), ("two_branch", 2)])
def test_recalls(tmp_path, mode, numpy_version):
    state = reference_model("dinov2-base", **MODES[mode]).state_dict()
    checkpoint = save_published(state, tmp_path / "model.pth", numpy_version)
    flags = ["--rerank_num=20"] if mode == "two_branch" else []
    flags += [f"--datasets_folder={DATASETS}", "--dataset_name=corridor", "--backbone=dinov2-base"]
    flags += [f"--resume={checkpoint}", "--resize", 224, 224, "--recall_values", 1, 5, 10, 20]
    result = run_script(SCRIPTS[mode], *flags, cwd=tmp_path, threads=os.cpu_count() or 1, timeout=900)
    assert result.status == 0, result.stderr
    (path,) = tmp_path.glob("logs/eval/*/results.json")
    results = json.loads(path.read_text())
    one_query = 100 / 111 + 0.006  # the expected figures have two decimals
    assert list(results["recalls"].values()) == pytest.approx(EXPECTED[mode], abs=one_query)
    if mode == "two_branch":
        assert list(results["first_stage_recalls"].values()) == pytest.approx(EXPECTED["hashing"], abs=one_query)
