"""The model against the reference figures and against naive formulas."""

import gzip
import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import GOLDEN, MODES, build, filled, image_batch, reference_model, sketched

from benchmarks.baseline_model import baseline_forward
from model import AGGREGATIONS, BACKBONES, CODE_BITS, HashingOutput, InputError, ModelConfig, TwoBranchOutput
from model.adapter import MulConvAdapter
from model.aggregation import SALAD, GeM, sinkhorn_assignment
from model.config import check_image_size
from model.network import STE_binary
from model.vision_transformer import VisionTransformer

WITH_REGISTERS = replace(BACKBONES["vit-tiny"], depth=3, num_adapters=3, num_registers=4)
MODE_NAMES = {"float": "float", "hashing": "hashing", "rerank": "two_branch"}  # golden's -> ours
TINY = [*((name, "float") for name in AGGREGATIONS), ("gem", "hashing"), ("gem", "two_branch"), ("boq", "two_branch")]


def build_filled(backbone, aggregation, mode, cache=None):
    """A model with reference parameters in eval mode."""
    return filled(sketched(backbone, aggregation, **MODES[mode]), cache)


@pytest.fixture(scope="module")
def tiny():
    """vit-tiny with reference parameters for (aggregation, mode)."""
    return {key: build_filled("vit-tiny", *key) for key in TINY}


def run(model, images):
    """The outputs of the model by name."""
    with torch.inference_mode():
        output = model(torch.from_numpy(images))
    return {"descriptor": output} if isinstance(output, torch.Tensor) else output._asdict()


def golden_keys():
    """The reference lists: {model: [[entry, shape], ...]}."""
    return json.loads(gzip.decompress((GOLDEN / "keys.json.gz").read_bytes()))


@pytest.mark.parametrize("name", sorted(golden_keys()))
def test_entries_are_the_published_ones(name):
    backbone, *aggregation, mode = name.split("_")
    model = sketched(backbone, *aggregation, **MODES[MODE_NAMES[mode]])
    assert [[entry, list(value.shape)] for entry, value in model.state_dict().items()] == golden_keys()[name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backbone": "resnet50"}, ["backbone", "'resnet50'", "dinov2-base, dinov2-large, dinov2-small"]),
        ({"backbone": "vit-tiny", "aggregation": "netvlad"}, ["aggregation", "'netvlad'", "gem, boq, salad"]),
        ({"backbone": "vit-tiny", "rerank": True}, ["rerank", "hashing"]),
        ({"backbone": "vit-tiny", "aggregation": "boq", "hashing": True}, ["boq", "gem", "hashing"]),
    ],
)
def test_model_config_refuses(arguments, words):
    with pytest.raises(InputError) as caught:
        build(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("backbone", "aggregation", "dim"),
    [
        ("dinov2-base", "gem", 2048),
        ("dinov2-large", "gem", 4096),
        ("dinov2-small", "gem", 1024),
        ("vit-tiny", "gem", 512),
        ("vit-nano", "gem", 512),
        ("vit-pico", "gem", 512),
        ("vit-tiny", "boq", 12288),
        ("dinov2-large", "boq", 12288),
        ("vit-tiny", "salad", 8448),
    ],
)
def test_descriptor_dim(backbone, aggregation, dim):
    assert sketched(backbone, aggregation).descriptor_dim == dim
    assert sketched(backbone, aggregation, hashing=True, rerank=True).descriptor_dim == dim


def test_a_hashing_model_has_no_float_descriptor(tiny):
    assert tiny["gem", "hashing"].descriptor_dim == 0


@pytest.mark.parametrize("key", TINY)
def test_non_square_images_give_unit_vectors_independent_of_the_batch(tiny, key):
    images = image_batch(3, 5, 126, 154)
    whole = run(tiny[key], images)
    for i in (0, 3):
        alone = run(tiny[key], images[i : i + 1])
        for name, value in whole.items():
            if name == "code":
                continue
            assert value.shape == (5, 512 if name == "logits" else tiny[key].descriptor_dim)
            assert (value[i] - alone[name][0]).abs().max() <= 1e-6
            torch.testing.assert_close(value.norm(dim=1), torch.ones(5))
            assert (value[0] - value[1]).norm() > 1e-2  # other photos, other descriptors


def test_height_and_width_are_not_swapped(tiny):
    """An image and its transpose must differ, and a model that takes h for w would fail or mix rows up."""
    model = tiny["gem", "float"]
    images = torch.from_numpy(image_batch(3, 1, 70, 126))
    backbone = model.backbone
    with torch.inference_mode():
        tokens = backbone(images)
        assert tokens.grid == (5, 9)
        h, w = tokens.grid
        position = backbone.position_embedding(h, w)[:, 1:].reshape(h, w, -1)
        grid = backbone.pos_embed[0, 1:].reshape(37, 37, -1).permute(2, 0, 1)[None]
        expected = F.interpolate(grid, scale_factor=(5.1 / 37, 9.1 / 37), mode="bicubic")[0].permute(1, 2, 0)
    torch.testing.assert_close(position, expected)


@pytest.mark.parametrize("size", [(224, 225), (223, 224), (13, 14), (100, 56), (7, 7)])
def test_a_size_that_is_no_multiple_of_14_is_refused(tiny, size):
    with pytest.raises(InputError) as caught:
        tiny["gem", "two_branch"](torch.zeros(1, 3, *size))
    assert all(str(number) in str(caught.value) for number in (*size, 14))


@pytest.mark.parametrize(("size", "patches"), [((112, 112), "64"), ((56, 70), "20")])
def test_salad_refuses_64_patches_or_fewer(tiny, size, patches):
    with pytest.raises(InputError, match=f"SALAD.*64.* {patches}[^0-9]"):
        tiny["salad", "float"](torch.zeros(1, 3, *size))


@pytest.mark.parametrize("aggregation", ["gem", "boq", "salad"])
def test_sizes_are_checked_without_the_backbone(aggregation):
    config = ModelConfig(backbone="dinov2-large", aggregation=aggregation)
    check_image_size(config, (126, 126))
    for size in [(126, 127), (112, 112)] if aggregation == "salad" else [(126, 127)]:
        with pytest.raises(InputError, match="14" if size[1] == 127 else "SALAD needs more than 64 patches"):
            check_image_size(config, size)
    check_image_size(ModelConfig(backbone="dinov2-large", hashing=True), (14, 14))


@pytest.mark.parametrize("aggregation", ["gem", "boq", "salad"])
@pytest.mark.parametrize("size", [(1000006, 1000006), (4494, 14), (14 * 9, 4494)])
def test_sizes_that_would_fill_the_memory_are_refused(aggregation, size):
    config = ModelConfig(backbone="vit-tiny", aggregation=aggregation)
    with pytest.raises(InputError, match=f"{size[0]} x {size[1]}.*no side may exceed 4480 pixels"):
        check_image_size(config, size)
    check_image_size(config, (4480, 4480))


def test_salad_takes_65_patches(tiny):
    assert run(tiny["salad", "float"], image_batch(0, 1, 70, 182))["descriptor"].isfinite().all()


def test_named_tuples_unpack(tiny):
    images = torch.from_numpy(image_batch(1, 2, 56, 70))
    with torch.inference_mode():
        logits, code = hashing = tiny["gem", "hashing"](images)
        two_logits, two_code, descriptor = two = tiny["gem", "two_branch"](images)
        single = tiny["gem", "float"](images)
        without_float = tiny["gem", "two_branch"](images, float_branch=False)
    assert isinstance(hashing, HashingOutput) and isinstance(two, TwoBranchOutput) and isinstance(single, torch.Tensor)
    assert hashing.logits is logits and hashing.code is code and two.descriptor is descriptor
    assert set(code.unique().tolist()) == {-1.0, 1.0} and code.shape == (2, CODE_BITS)
    torch.testing.assert_close(code, torch.where(logits < 0, -1.0, 1.0))
    # The same parameters: a branch gives the same whether the other is there or not.
    for value, same in ((logits, two_logits), (single, descriptor), (logits, without_float.logits)):
        torch.testing.assert_close(value, same)
    assert isinstance(without_float, HashingOutput)


def test_a_frozen_backbone_gets_no_gradient_and_everything_else_does():
    model = reference_model("vit-tiny", hashing=True, rerank=True).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.branch_of(name) != "backbone")
    logits, code, descriptor = model(torch.from_numpy(image_batch(1, 2, 56, 56)))
    (logits[0].sum() + code[0].sum() + descriptor[0].sum()).backward()
    for name, parameter in model.named_parameters():
        backbone = name.startswith("backbone.") and not name.startswith(
            ("backbone.adapters.", "backbone.adapters_hashing.")
        )
        assert parameter.requires_grad is not backbone, name
        assert (parameter.grad is not None) is not backbone, name


@pytest.mark.parametrize("depth", [12, 24])
def test_a_branch_beside_the_backbone(depth):
    """DESIGN.md 3: y = x_0 (x_8 of 24 blocks), then y = y + adapter_i(y + x_i), from the blocks' own outputs."""
    vit = replace(BACKBONES[{12: "dinov2-base", 24: "dinov2-large"}[depth]], embed_dim=96, num_heads=3)
    model = VisionTransformer(vit, float_branch=True, binary_branch=True).eval()
    images, outputs = torch.from_numpy(image_batch(2, 1, 42, 28)), []
    with torch.inference_mode():
        for adapter in [*model.adapters, *model.adapters_hashing]:
            torch.nn.init.normal_(adapter.D_fc2.weight, std=0.3)
        x = model.patch_embed(images)
        outputs.append(torch.cat([model.cls_token, x], dim=1) + model.position_embedding(3, 2))
        for block in model.blocks:
            outputs.append(block(outputs[-1]))
        tokens = model(images)
        first = {12: 1, 24: 9}[depth]
        for adapters, branch in ((model.adapters, tokens.float_tokens), (model.adapters_hashing, tokens.binary_tokens)):
            assert len(adapters) == depth + 1 - first
            y = outputs[first - 1]
            for i in range(first, depth + 1):
                y = y + adapters[i - first](y + outputs[i], (3, 2))
            torch.testing.assert_close(branch, model.norm(y), rtol=1e-4, atol=1e-5)
    assert (tokens.float_tokens - tokens.binary_tokens).abs().max() > 1e-2


def bicubic_weights(size):
    """[size, 37]: weights of antialiased bicubic resizing (a = -0.5) of 37 values, one at a time."""
    weights, scale = np.zeros((size, 37)), 37 / size
    for i in range(size):
        for j in range(37):
            x = abs(j + 0.5 - (i + 0.5) * scale) / max(scale, 1)
            weights[i, j] = (
                1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0
            )
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("grid", [(5, 9), (16, 50), (37, 37)])
def test_tokens_with_registers(grid):
    """As DINOv2 makes them: no offset of 0.1 and antialiasing; registers after the class token, without positions."""
    model = filled(VisionTransformer(WITH_REGISTERS)).double()
    images = torch.from_numpy(image_batch(3, 2, 14 * grid[0], 14 * grid[1])).double()
    with torch.inference_mode():
        actual, patches = model.embed(images, grid).numpy(), model.patch_embed(images).numpy()
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    positions = state["pos_embed"][0, 1:].reshape(37, 37, -1)
    if grid != (37, 37):
        rows, columns = map(bicubic_weights, grid)
        positions = np.einsum("ia,jb,abd->ijd", rows, columns, positions)
    for image in range(2):
        first = state["cls_token"][0, 0] + state["pos_embed"][0, 0]
        rest = patches[image] + positions.reshape(grid[0] * grid[1], -1)
        np.testing.assert_allclose(actual[image], [first, *state["register_tokens"][0], *rest], atol=2e-6)


def test_registers_act_through_the_blocks_alone(monkeypatch):
    """The adapters and heads give what they would give for the class token and the patches without them."""
    monkeypatch.setitem(BACKBONES, "vit-tiny-reg", WITH_REGISTERS)
    h, w = grid = (9, 10)
    images = torch.from_numpy(image_batch(4, 2, 14 * h, 14 * w))
    for aggregation in AGGREGATIONS:
        model = reference_model("vit-tiny-reg", aggregation, hashing=True, rerank=True)
        backbone = model.backbone
        with torch.inference_mode():
            x = backbone.embed(images, grid)
            assert x.shape == (2, 1 + 4 + h * w, 192)
            float_tokens = binary_tokens = torch.cat([x[:, :1], x[:, 5:]], dim=1)
            for i, block in enumerate(backbone.blocks):
                x = block(x)
                seen = torch.cat([x[:, :1], x[:, 5:]], dim=1)
                float_tokens = float_tokens + backbone.adapters[i](float_tokens + seen, grid)
                binary_tokens = binary_tokens + backbone.adapters_hashing[i](binary_tokens + seen, grid)
            expected = model._float_head(backbone.norm(float_tokens), grid)
            logits = model._binary_head(backbone.norm(binary_tokens), grid)
            actual = model(images)
            backbone.register_tokens.zero_()
            changed = model(images)
        torch.testing.assert_close(actual.descriptor, expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(actual.logits, logits, rtol=0, atol=2e-6)
        assert (changed.descriptor - expected).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_the_model_equals_the_baseline_of_the_benchmarks(tiny, mode):
    images = torch.from_numpy(image_batch(5, 3, 56, 70))
    with torch.inference_mode():
        baseline = baseline_forward(tiny["gem", mode], images)
    for name, value in zip(("descriptor", "logits", "code"), baseline, strict=True):
        if name in (output := run(tiny["gem", mode], images.numpy())):
            torch.testing.assert_close(value, output[name])
        else:
            assert value is None


def naive_sinkhorn(scores, dust_bin):
    """SALAD's assignment of one image, scores [m][n], by loops: rows, then columns, three times."""
    m, n = len(scores), len(scores[0])
    rows = [list(row) for row in scores] + [[dust_bin] * n]
    log_mass = [math.log(1 / (n + m))] * m + [math.log((n - m) / (n + m))]
    u, v = [0.0] * (m + 1), [0.0] * n
    for _ in range(3):
        for i in range(m + 1):
            u[i] = log_mass[i] - math.log(sum(math.exp(rows[i][j] + v[j]) for j in range(n)))
        for j in range(n):
            v[j] = math.log(1 / (n + m)) - math.log(sum(math.exp(rows[i][j] + u[i]) for i in range(m + 1)))
    return [[math.exp(rows[i][j] + u[i] + v[j] + math.log(n + m)) for j in range(n)] for i in range(m)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("m", "n"), [(4, 5), (3, 20), (64, 65), (8, 90)])
def test_sinkhorn_assignment(seed, m, n):
    random = np.random.default_rng(seed)
    scores, dust_bin = 3 * random.standard_normal((2, m, n)), random.uniform(-1, 2)
    assignment = sinkhorn_assignment(torch.from_numpy(scores), torch.tensor(dust_bin))
    for image in range(2):
        np.testing.assert_allclose(assignment[image], naive_sinkhorn(scores[image].tolist(), dust_bin), rtol=1e-9)


def test_salad():
    """The whole head in float64, a patch and a cluster at a time."""
    torch.manual_seed(0)
    salad = SALAD(24).double().eval()
    with torch.no_grad():
        salad.dust_bin.fill_(0.4)
    h, w = 6, 12
    tokens = torch.randn(2, 1 + h * w, 24, dtype=torch.float64)
    with torch.inference_mode():
        actual = salad(tokens, (h, w))
    state = {name: value.numpy().squeeze() for name, value in salad.state_dict().items()}
    for image in range(2):

        def mlp(x, name, last):
            hidden = np.maximum(state[f"{name}.0.weight"] @ x + state[f"{name}.0.bias"], 0)
            return state[f"{name}.{last}.weight"] @ hidden + state[f"{name}.{last}.bias"]

        cls_token, *patches = tokens[image].numpy()
        token = mlp(cls_token, "token_features", 2)
        features = [mlp(patch, "cluster_features", 3) for patch in patches]
        scores = np.array([mlp(patch, "score", 3) for patch in patches]).T
        assignment = naive_sinkhorn(scores.tolist(), 0.4)
        clusters = []
        for row in assignment:
            cluster = sum(share * feature for share, feature in zip(row, features, strict=True))
            clusters.append(cluster / np.linalg.norm(cluster))
        # "the 128 axis first": all clusters' first feature, all clusters' second feature, ...
        expected = [*(token / np.linalg.norm(token)), *(cluster[axis] for axis in range(128) for cluster in clusters)]
        np.testing.assert_allclose(
            actual[image], expected / np.linalg.norm(expected), atol=1e-6
        )  # the head ends in float32
    assert actual.shape == (2, 256 + 128 * 64)


def test_adapter():
    """MulConvAdapter on a 3 x 4 grid, a token at a time."""
    torch.manual_seed(0)
    dim, h, w = 64, 3, 4
    adapter = MulConvAdapter(dim).double().eval()
    with torch.no_grad():
        for name, value in adapter.state_dict().items():
            if value.dtype == torch.float64:
                value.copy_(torch.rand_like(value) * 0.4 - (0 if "running_var" in name else 0.15))
    tokens = torch.randn(2, 1 + h * w, dim, dtype=torch.float64)
    with torch.inference_mode():
        actual = adapter(tokens, (h, w))
    state = {name: value.numpy() for name, value in adapter.state_dict().items()}

    def convolve(name, maps):
        """Conv2d with zero padding, BatchNorm2d with eps 1e-3, ReLU: {(row, column): [C]} -> the same."""
        weight = state[f"{name}.conv.weight"]
        half = weight.shape[2] // 2
        out = {}
        for row, column in maps:
            value = state[f"{name}.conv.bias"].copy()
            for i in range(-half, half + 1):
                for j in range(-half, half + 1):
                    if (row + i, column + j) in maps:
                        value += weight[:, :, i + half, j + half] @ maps[row + i, column + j]
            value = (value - state[f"{name}.bn.running_mean"]) / np.sqrt(state[f"{name}.bn.running_var"] + 1e-3)
            out[row, column] = np.maximum(value * state[f"{name}.bn.weight"] + state[f"{name}.bn.bias"], 0)
        return out

    for image in range(2):
        u = [np.maximum(state["D_fc1.weight"] @ token + state["D_fc1.bias"], 0) for token in tokens[image].numpy()]
        maps = {(row, column): u[1 + row * w + column] for row in range(h) for column in range(w)}
        branches = [convolve("branch1", maps)]
        branches += [convolve(f"{name}.1", convolve(f"{name}.0", maps)) for name in ("branch2", "branch3")]
        hidden = [2 * u[0]] + [np.concatenate([branch[place] for branch in branches]) + maps[place] for place in maps]
        expected = [state["D_fc2.weight"] @ value + state["D_fc2.bias"] for value in hidden]
        np.testing.assert_allclose(actual[image], expected, rtol=1e-9)


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_gem(p):
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 4)).astype(np.float32)
    with torch.inference_mode():
        actual = GeM(p)(torch.from_numpy(x))
    for image in range(2):
        for channel in range(5):
            values = [max(float(value), 1e-6) ** p for value in x[image, channel].flat]
            assert actual[image, channel].item() == pytest.approx((sum(values) / 12) ** (1 / p), rel=1e-5)


def test_ste_binary():
    x = torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0], requires_grad=True)
    code = STE_binary.apply(x)
    assert code.tolist() == [-1, -1, 1, 1, 1, 1]
    gradient = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0, 7.0])
    code.backward(gradient)
    assert torch.equal(x.grad, gradient)


def test_position_embedding_at_its_own_size_is_used_as_it_is(tiny):
    backbone = tiny["gem", "float"].backbone
    assert torch.equal(backbone.position_embedding(37, 37), backbone.pos_embed)
    assert backbone.position_embedding(37, 36).shape == (1, 1 + 37 * 36, 192)


def test_start_of_training():
    torch.manual_seed(0)
    model = build("vit-tiny", hashing=True, rerank=True)
    backbone = model.backbone
    assert model.training
    for adapter in [*backbone.adapters, *backbone.adapters_hashing]:
        assert adapter(torch.randn(1, 7, 192), (2, 3)).abs().max() == 0
        assert not adapter.D_fc2.weight.any() and not adapter.D_fc2.bias.any() and not adapter.D_fc1.bias.any()
        assert 0.015 < adapter.D_fc1.weight.std() < 0.025
        convolutions = [module for module in adapter.modules() if isinstance(module, torch.nn.Conv2d)]
        assert len(convolutions) == 5
        assert all((value == 1e-5).all() for convolution in convolutions for value in convolution.parameters())
    assert all((block.ls1.gamma == 1).all() and (block.ls2.gamma == 1).all() for block in backbone.blocks)
    assert model.aggregation[1].p.item() == model.aggregation_hashing[1].p.item() == 3


def test_dropout_of_salad_is_in_its_patch_branches_alone():
    modules = build("vit-tiny", "salad").named_modules()
    dropouts = {name: module.p for name, module in modules if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {"aggregation.cluster_features.1": 0.3, "aggregation.score.1": 0.3}


def golden_specs():
    """backbone:aggregation:mode:seed:size of the reference outputs, large last."""
    return sorted(
        {key.split("/")[0] for key in np.load(GOLDEN / "forward.npz").files}, key=lambda spec: ("large" in spec, spec)
    )


@pytest.fixture(scope="module")
def parameters():
    """Reference parameters that the models of one backbone share; these models are worth all threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield {}
    torch.set_num_threads(before)


@pytest.mark.parametrize("spec", golden_specs())
def test_reference_outputs(spec, parameters):
    backbone, aggregation, mode, seed, size = spec.split(":")
    if "large" in spec:
        parameters.clear()
    images = image_batch(int(seed), 2, int(size), int(size))
    outputs = run(build_filled(backbone, aggregation, MODE_NAMES[mode], parameters), images)
    golden = np.load(GOLDEN / "forward.npz")
    names = [key.split("/")[1] for key in golden.files if key.startswith(spec + "/")]
    assert (
        sorted(names)
        == {"float": ["global"], "hashing": ["code", "logits"], "rerank": ["code", "global", "logits"]}[mode]
    )
    for name in names:
        expected, actual = golden[f"{spec}/{name}"], outputs["descriptor" if name == "global" else name].numpy()
        assert actual.shape == expected.shape
        if name == "code":
            clear = np.abs(golden[f"{spec}/logits"]) > 1e-6
            assert clear.mean() > 0.99
            assert (actual == expected)[clear].all()
            continue
        assert np.linalg.norm(actual - expected) <= 1e-5 * np.linalg.norm(expected)
        difference, expected_difference = actual[0] - actual[1], expected[0] - expected[1]
        assert np.linalg.norm(difference - expected_difference) <= 1e-3 * np.linalg.norm(expected_difference)
