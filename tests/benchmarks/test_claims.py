"""The paper's claims in miniature: the variants are what their names say, and the command runs and goes on."""

import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.processes import start_script

from benchmarks.claims.domains import DOMAINS, FOUNDATION, benchmark, draw_cities, training_places
from benchmarks.claims.experiments import Laboratory, with_distractors
from benchmarks.claims.plan import choose_rate
from benchmarks.claims.runs import Run, float_run, make_step
from benchmarks.claims.settings import QUICK, Settings
from benchmarks.claims.tables import spread, tables, verdict
from benchmarks.claims.variants import (
    ADAPTERS,
    HASHING_LOSSES,
    NETWORKS,
    PlainNet,
    pooled_backbone,
)
from model import HashingOutput, InputError
from model.adapter import MulConvAdapter
from model.network import STE_binary
from utils.training.losses import float_losses, hashing_losses, mine_pairs
from utils.training.step import set_training_mode

SHALLOW = """
from dataclasses import replace
from model.config import BACKBONES
BACKBONES["vit-tiny"] = replace(BACKBONES["vit-tiny"], depth=2, num_adapters=2)  # a sixth of the time
"""
LABELS = torch.arange(4).repeat_interleave(3)


@pytest.fixture(scope="module")
def cities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims") / "cities"
    draw_cities(folder, QUICK)
    return folder


def images(seed: int = 0) -> torch.Tensor:
    """Images [12, 3, 28, 42] of four places."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(4, 3, 28, 42, generator=generator).repeat_interleave(3, dim=0)
    return places + 0.5 * torch.randn(12, 3, 28, 42, generator=generator)


def trained(network: str, steps: int = 1):
    """A network's values before and after training steps."""
    torch.manual_seed(0)
    step = make_step(NETWORKS[network](), Run(network=network, rate=2e-3, seed=0), 4)
    set_training_mode(step.model)
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    for number in range(steps):
        step(images(number), LABELS)
    return step.model, before


def output(bits: int = 16) -> HashingOutput:
    """Random logits that need gradients, and their codes, as the network gives them."""
    raw = torch.randn(12, bits, generator=torch.Generator().manual_seed(1))
    logits = F.normalize(raw + raw[::3].repeat_interleave(3, dim=0), dim=1).requires_grad_()
    return HashingOutput(logits, STE_binary.apply(logits))


@pytest.mark.parametrize("dim", [192, 768])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_have_the_size_of_multiconv_and_start_at_zero(name, dim):
    adapter, multiconv = ADAPTERS[name](dim), MulConvAdapter(dim)
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (adapter, multiconv)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    tokens = torch.randn(2, 1 + 6, dim)
    assert adapter(tokens, (2, 3)).shape == tokens.shape
    assert not adapter(tokens, (2, 3)).any()


def test_the_plain_adapter_mixes_no_patches_and_the_other_ones_do():
    tokens = torch.randn(1, 1 + 20, 192)
    changed = tokens.clone()
    changed[:, 1] += 1  # the patch in the corner of the 4 x 5 grid
    for name, reach in (("bottleneck", {0}), ("conv3_random", {0, 1, 5, 6})):
        adapter = ADAPTERS[name](192).eval()
        torch.nn.init.normal_(adapter.up.weight)
        moved = (adapter(changed, (4, 5)) - adapter(tokens, (4, 5))).abs().sum(dim=2)[0] > 1e-5
        assert set((moved[1:].nonzero().flatten()).tolist()) == reach
        assert not moved[0]


@torch.no_grad()
def test_a_backbone_network_gives_the_head_the_tokens_of_the_backbone():
    model = PlainNet().eval()
    backbone = model.backbone
    x = backbone.patch_embed(images())
    x = torch.cat([backbone.cls_token.expand(12, -1, -1), x], dim=1) + backbone.position_embedding(2, 3)
    for block in backbone.blocks:
        x = block(x)
    tokens = backbone.norm(x)
    mapped = F.normalize(model.linear1(tokens)[:, 1:], dim=2)
    pooled = mapped.clamp(min=1e-6).pow(3).mean(dim=1).pow(1 / 3)
    torch.testing.assert_close(model(images()), F.normalize(model.linear2(pooled), dim=1))

    plain = pooled_backbone().eval()
    plain.backbone.load_state_dict(backbone.state_dict())
    pooled = F.normalize(tokens[:, 1:], dim=2).clamp(min=1e-6).pow(3).mean(dim=1).pow(1 / 3)
    torch.testing.assert_close(plain(images()), F.normalize(pooled, dim=1))


@pytest.mark.parametrize(
    "network, parts",
    [("head", {"head"}), ("full", {"head", "backbone"}), ("multiconv", {"head", "adapters"})]
    + [(name, {"head", "adapters"}) for name in ADAPTERS],
)
def test_each_variant_trains_what_its_name_says(network, parts):
    model, before = trained(network, steps=2)
    changed = set()
    for name, value in model.named_parameters():
        part = "adapters" if ".adapters." in name else "backbone" if name.startswith("backbone.") else "head"
        if not value.equal(before[name]):
            changed.add(part)
        assert value.requires_grad == (part in parts and name != "backbone.mask_token"), name
    assert changed == parts


def gradient(loss, result: HashingOutput) -> torch.Tensor:
    """The gradient of a loss with respect to the logits."""
    return torch.autograd.grad(loss.total, result.logits)[0]


def test_sign_after_training_ignores_the_codes():
    result = output()
    losses = HASHING_LOSSES["sign_after"](result, LABELS)
    flipped = HASHING_LOSSES["sign_after"](HashingOutput(result.logits, -result.code.detach()), LABELS)
    assert losses.total == flipped.total == float_losses(result.logits, LABELS).total
    assert gradient(losses, result).any()


def test_straight_through_has_no_constraint_and_its_gradient_passes_the_codes():
    result = output()
    losses = HASHING_LOSSES["straight_through"](result, LABELS)
    assert losses.constraint == 0
    assert losses.total == losses.multi_similarity == hashing_losses(result, LABELS).multi_similarity
    codes = result.code.detach().requires_grad_()
    (expected,) = torch.autograd.grad(float_losses(codes, LABELS).total, codes)
    torch.testing.assert_close(gradient(losses, result), expected)
    assert expected.any()


def test_the_constraint_alone_pulls_the_logits_to_the_codes_and_passes_no_gradient_through_these():
    result = output()
    losses = HASHING_LOSSES["constraint"](result, LABELS)
    logits, codes = result.logits.detach(), result.code.detach()
    positives, negatives = mine_pairs(logits @ logits.T, LABELS)
    pairs = (positives | negatives).nonzero().tolist()
    differences = [float(logits[i] @ logits[j] - codes[i] @ codes[j] / 16) ** 2 for i, j in pairs]
    assert float(losses.constraint.detach()) == pytest.approx(np.mean(differences), rel=1e-5)
    assert torch.equal(losses.total, losses.multi_similarity + 0.1 * losses.constraint)
    assert losses.multi_similarity == float_losses(logits, LABELS).total
    constant = HASHING_LOSSES["constraint"](HashingOutput(result.logits, codes), LABELS)
    torch.testing.assert_close(gradient(losses, result), gradient(constant, result))


def test_training_on_all_domains_takes_a_third_of_the_places_of_each(cities):
    single = training_places(cities, ("winter",), QUICK, 0)
    several = training_places(cities, tuple(DOMAINS), QUICK, 0)
    assert len(single) == len(several) == QUICK.places
    assert {place[0].split("/")[0][:-1] for place in single.places} == {"winter"}
    counts = [sum(place[0].startswith(name) for place in several.places) for name in DOMAINS]
    assert counts == [QUICK.places // 3] * 3
    foundation = training_places(cities, (FOUNDATION,), QUICK, 0)
    assert len(foundation) == QUICK.foundation_places


def test_training_images_in_the_database_are_no_positives(cities):
    dataset = benchmark(cities, "winter", "test")
    loader = SimpleNamespace(places=training_places(cities, ("winter",), QUICK, 0))
    larger = with_distractors(dataset, loader)
    assert len(larger.database) == len(dataset.database) + QUICK.places * QUICK.photos_per_place
    assert all(os.path.isfile(path) for path in larger.database.paths)
    for expected, actual in zip(dataset.positives, larger.positives, strict=True):
        assert np.array_equal(expected, actual)


def test_the_learning_rate_is_chosen_on_validation_places_with_the_first_seed():
    asked = []

    def result(run):
        asked.append((run.rate, run.seed))
        return {"validation": {"1": 50.0 + 10 * (run.rate == 2), "5": 80.0}, "recalls": None}

    lab = SimpleNamespace(settings=SimpleNamespace(learning_rates=(1, 2, 3), seeds=(7, 8)), result=result)
    assert choose_rate(lab, lambda rate, seed: float_run("head", rate, seed)) == 2
    assert set(asked) == {(1, 7), (2, 7), (3, 7)}


def test_a_folder_with_experiments_of_other_sizes_is_refused(tmp_path):
    Laboratory(tmp_path, QUICK)
    Laboratory(tmp_path, QUICK)
    with pytest.raises(InputError, match="experiments of other sizes"):
        Laboratory(tmp_path, Settings())


def test_spread_and_verdict():
    assert spread([70.0, 72.0, 74.0]) == "72.0 ± 2.0"
    assert spread([-0.01, 0.0], sign=True) == "+0.0 ± 0.0"
    assert spread([1.0]) == "1.0"
    assert spread([None]) == ""
    assert verdict([3.0, 4.0], [1.0], "+5").endswith(
        "+2.5 ± 0.7 points; paper: +5. The direction agrees with every seed."
    )
    assert "**The direction is the opposite with every seed.**" in verdict([1.0, 1.0], [3.0, 2.0], "+5")
    assert "do not agree" in verdict([1.0, 3.0], [2.0, 2.0], "+5")
    assert verdict([2.0], [1.0], "+5").endswith("One seed only.")
    assert verdict([1.0], [2.0], "near or above") == "-1.0 points; paper: near or above."


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill_without_repeating_runs(cities, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "cities").symlink_to(cities)
    runs = tmp_path / "work" / "runs"
    flags = ["--quick", "--threads=1", "--work=work"]
    running = start_script("benchmarks.claims", *flags, cwd=tmp_path, prelude=SHALLOW)
    deadline = time.monotonic() + 200
    while len(list(runs.glob("*_seed0.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(running.process.pid, signal.SIGKILL)
    assert running.result().status == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert len(finished) >= 3
    assert not (tmp_path / "work/claims.json").exists()

    result = start_script("benchmarks.claims", *flags, cwd=tmp_path, prelude=SHALLOW).result()
    assert result.status == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(list(runs.glob("*.json"))) > len(finished) + 10
    assert "### One domain against several in training" in result.stdout
    assert "| plain bottleneck adapters |" in result.stdout
    results = json.loads((tmp_path / "work/claims.json").read_text())
    assert tables(results) in result.stdout
    assert set(results["claims"]) == {"adaptation", "adapters", "hashing", "two_stage", "domains"}
    assert (tmp_path / "work/claims.png").read_bytes().startswith(b"\x89PNG")
