"""The same results on a CUDA GPU as on the CPU. Skipped where there is none."""

import numpy as np
import pytest
import torch
from helpers import MODES, build, filled, image_batch
from test_eval import SCRIPTS, run_mode

from utils.retrieval.search import search_hamming
from utils.training.config import TrainingConfig
from utils.training.losses import float_losses
from utils.training.step import TrainingStep, set_training_mode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.mark.parametrize("aggregation", ["gem", "boq", "salad"])
def test_descriptors(aggregation):
    model = filled(build("vit-tiny", aggregation)).eval()
    images = torch.from_numpy(image_batch(5, 4, 126, 140))
    with torch.inference_mode():
        expected = model(images)
        actual = model.cuda()(images.cuda()).cpu()
    assert (torch.cosine_similarity(actual, expected) > 0.9999).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mode", SCRIPTS)
def test_recalls_of_the_scripts(tiny_benchmark, checkpoints, tmp_path, mode, precision):
    expected = run_mode(mode, tiny_benchmark, checkpoints, tmp_path / "cpu").results["recalls"]
    flags = ["--device=cuda", f"--precision={precision}"]
    actual = run_mode(mode, tiny_benchmark, checkpoints, tmp_path / "gpu", *flags).results["recalls"]
    assert all(abs(actual[n] - expected[n]) <= 10 for n in expected)  # one of ten queries


def test_a_training_step():
    losses = {}
    for device in ("cpu", "cuda"):
        model = filled(build("vit-tiny", **MODES["float"])).to(device)
        config = TrainingConfig(optim="adam", lr=4e-4, device=device)
        step = TrainingStep(model, config, criterion=float_losses, branch="float")
        set_training_mode(model)
        images = torch.from_numpy(image_batch(7, 8, 56, 56)).to(device)
        losses[device] = float(step(images, torch.arange(4, device=device).repeat_interleave(2)).total)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


@pytest.mark.parametrize("values", [2, 256])  # of a byte; with 2 there are many ties
def test_the_search_by_codes(values):
    random = np.random.default_rng(0)
    database = random.integers(0, values, (300_000, 64), dtype=np.uint8)  # three blocks
    queries = np.concatenate([random.integers(0, values, (600, 64), dtype=np.uint8), ~database[:1]])
    expected = search_hamming(database, queries, 100)
    actual = search_hamming(database, queries, 100, device="cuda")
    np.testing.assert_array_equal(actual.distances, expected.distances)
    np.testing.assert_array_equal(actual.indices, expected.indices)
