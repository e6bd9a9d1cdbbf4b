"""prepare_for_inference: the same outputs up to rounding, and the original as it was."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from helpers.models import MODES, build, image_batch, reference_model

from model import BACKBONES, InputError, prepare_for_inference
from model.inference import KEPT_GRIDS, prepare_frozen_backbone
from model.vision_transformer import LayerScale
from utils.training.config import TrainingConfig
from utils.training.losses import float_losses, hashing_losses
from utils.training.step import TrainingStep, set_training_mode

pytestmark = pytest.mark.usefixtures("shallow_vit")
KINDS = [("gem", "float"), ("boq", "float"), ("salad", "float"), ("gem", "hashing"), ("gem", "two_branch")]


def outputs(model, images, *more):
    """The outputs by name."""
    with torch.inference_mode():
        result = model(images, *more)
    return {"descriptor": result} if isinstance(result, torch.Tensor) else result._asdict()


@pytest.fixture
def images():
    return torch.from_numpy(image_batch(3, 3, 126, 140))


@pytest.mark.parametrize(("aggregation", "mode"), KINDS)
def test_the_outputs_are_the_same_up_to_rounding(images, aggregation, mode):
    model = reference_model("vit-tiny", aggregation, **MODES[mode])
    prepared = prepare_for_inference(model)
    assert not any(isinstance(part, torch.nn.BatchNorm2d | LayerScale) for part in prepared.network.modules())
    assert (prepared.config, prepared.descriptor_dim) == (model.config, model.descriptor_dim)
    expected, found = outputs(model, images), outputs(prepared, images)
    assert expected.keys() == found.keys()
    for name, value in found.items():
        certain = expected["logits"].abs() > 1e-6 if name == "code" else ...
        torch.testing.assert_close(value[certain], expected[name][certain], rtol=0, atol=2e-6)
    if mode == "two_branch":
        binary = outputs(prepared, images, False)
        assert list(binary) == ["logits", "code"]
        torch.testing.assert_close(binary["logits"], expected["logits"], rtol=0, atol=2e-6)


def test_a_model_with_registers(images, monkeypatch):
    monkeypatch.setitem(BACKBONES, "vit-tiny", replace(BACKBONES["vit-tiny"], num_registers=4))
    model = reference_model("vit-tiny", "salad")
    expected = outputs(model, images)["descriptor"]
    for dtype, most in ((torch.float32, 2e-6), (torch.bfloat16, 0.1)):
        found = outputs(prepare_for_inference(model, dtype), images)["descriptor"]
        assert float((found - expected).norm(dim=1).max()) < most
    frozen = prepare_frozen_backbone(model.backbone, torch.float32, (9, 10))
    with torch.inference_mode():
        found = model(images, frozen_backbone=frozen)
        converted = copy.deepcopy(model).bfloat16()(images.bfloat16())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert float((converted - expected).norm(dim=1).max()) < 0.1


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
@pytest.mark.parametrize(("aggregation", "mode"), KINDS)
def test_half_precision_takes_and_returns_float32(images, aggregation, mode, dtype, most):
    model = reference_model("vit-tiny", aggregation, **MODES[mode])
    expected, found = outputs(model, images), outputs(prepare_for_inference(model, dtype), images)
    for name, value in found.items():
        assert value.dtype == torch.float32
        if name != "code":
            assert 1e-5 < float((value - expected[name]).norm(dim=1).max()) < most


@pytest.mark.parametrize("compiled", [False, True])
def test_each_image_size_has_its_own_position_embedding(monkeypatch, compiled):
    compile_module, compilations = torch.nn.Module.compile, []

    def backend(graph, _inputs):
        compilations.append(graph)
        return graph

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    model = reference_model("vit-tiny")
    prepared = prepare_for_inference(model, compiled=compiled)
    torch._dynamo.reset()
    for i in range(2):
        for height, width in ((56, 70), (70, 56), (56, 84)):
            images = torch.from_numpy(image_batch(3, 2, height, width))
            found, expected = outputs(prepared, images), outputs(model, images)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        if i == 0:
            first = len(compilations)
    torch._dynamo.reset()
    assert len(compilations) == first == (3 if compiled else 0)


def test_no_more_position_embeddings_are_kept_than_said():
    model = reference_model("vit-tiny")
    prepared = prepare_for_inference(model)
    for patches in range(1, KEPT_GRIDS + 3):
        prepared(torch.zeros(1, 3, 14, 14 * patches))
    assert list(prepared.kept_positions) == [(1, patches) for patches in range(3, KEPT_GRIDS + 3)]


def test_a_prepared_model_frees_its_memory_at_once():
    prepared = prepare_for_inference(reference_model("vit-tiny"), torch.bfloat16)
    prepared(torch.zeros(1, 3, 14, 14))
    network = weakref.ref(prepared.network)
    gc.disable()
    try:
        del prepared
        assert network() is None
    finally:
        gc.enable()


def test_position_embeddings_are_computed_in_full_precision():
    model = reference_model("vit-tiny")
    images = torch.from_numpy(image_batch(3, 1, 56, 70))
    prepared = prepare_for_inference(model, torch.bfloat16)
    outputs(prepared, images)
    frozen = prepare_frozen_backbone(model.backbone, torch.bfloat16, (4, 5))
    expected = model.backbone.position_embedding(4, 5).bfloat16()
    for backbone in (prepared.network.backbone, frozen):
        torch.testing.assert_close(backbone.position_embedding(4, 5), expected, rtol=0, atol=0)


def test_weights_are_constants_while_a_prepared_model_compiles(images, monkeypatch):
    from torch._inductor import config

    frozen = []
    compile_module = torch.nn.Module.compile

    def backend(graph, _inputs):
        frozen.append(config.freezing)
        return graph

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    model = reference_model("vit-tiny")
    found = outputs(prepare_for_inference(model, compiled=True), images)["descriptor"]
    torch._dynamo.reset()
    assert frozen == [True] and not config.freezing
    torch.testing.assert_close(found, outputs(model, images)["descriptor"], rtol=0, atol=2e-6)


def test_the_original_stays_as_it_is_and_shares_its_weights(images):
    model = reference_model("vit-tiny", **MODES["two_branch"])
    state, before = copy.deepcopy(model.state_dict()), outputs(model, images)
    prepared = prepare_for_inference(model)
    half = prepare_for_inference(model, torch.bfloat16)
    outputs(prepared, images), outputs(half, images)
    assert prepared.original is half.original is model
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(outputs(model, images), before, rtol=0, atol=0)
    shared = {value.data_ptr() for value in model.parameters()}
    sizes = [value.nbytes for value in prepared.network.parameters() if value.data_ptr() not in shared]
    assert sum(sizes) < 0.5 * sum(value.nbytes for value in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("mode", ["float", "two_branch"])
def test_a_step_takes_the_backbone_from_a_checkpoint_that_is_loaded_after_it_was_made(images, mode):
    labels, images = torch.tensor([0, 0, 1, 1]), images.repeat(2, 1, 1, 1)[:4]
    branch, criterion = ("float", float_losses) if mode == "float" else ("binary", hashing_losses)
    filled_model = reference_model("vit-tiny", **MODES[mode])
    losses = []
    for model in (filled_model, build("vit-tiny", **MODES[mode])):
        step = TrainingStep(model, TrainingConfig(precision="bf16"), criterion=criterion, branch=branch)
        model.load_state_dict(copy.deepcopy(filled_model.state_dict()))
        set_training_mode(model)
        losses.append(step(images, labels))
        model.load_state_dict(reference_model("vit-tiny", **MODES[mode]).state_dict())
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


def test_the_frozen_backbone_gives_the_losses_of_the_model_alone(images):
    labels, images = torch.tensor([0, 0, 1, 1]), images.repeat(2, 1, 1, 1)[:4]
    losses = []
    for with_copy in (True, False):
        model = reference_model("vit-tiny")
        config = TrainingConfig(optim="sgd", lr=1.0, precision="bf16")
        step = TrainingStep(model, config, criterion=float_losses, branch="float")
        assert step.copies_backbone
        step.copies_backbone = with_copy
        set_training_mode(model)
        losses.append([float(step(images, labels).total) for _ in range(5)])
        if with_copy:
            assert not any(value.requires_grad for value in step.frozen_backbone.parameters())
            assert not any(isinstance(part, LayerScale) for part in step.frozen_backbone.modules())
    assert losses[0][-1] < losses[0][0] - 0.003
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_frozen_backbone_keeps_its_precision_under_autocast(images):
    model = reference_model("vit-tiny")
    frozen = prepare_frozen_backbone(model.backbone, torch.float16, (9, 10))
    seen = []
    frozen.blocks[1].norm1.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.backbone(images, frozen_backbone=frozen).float_tokens
    ((before, after),) = seen
    assert before.dtype == after.dtype == torch.float16
    assert tokens.dtype == torch.float32


def test_a_model_that_trains_is_prepared_between_steps(images):
    """Whatever is compiled, and left in the gradients."""
    model = reference_model("vit-tiny")
    step = TrainingStep(model, TrainingConfig(lr=0.1), criterion=float_losses, branch="float")
    set_training_mode(model)
    step(images.repeat(2, 1, 1, 1)[:4], torch.tensor([0, 0, 1, 1]))
    with pytest.raises(InputError, match="in training mode"):
        prepare_for_inference(model)
    model.eval()
    expected = outputs(model, images)["descriptor"]
    model.compile(backend="eager")
    prepared = prepare_for_inference(model)
    assert prepared.network._compiled_call_impl is None
    torch.testing.assert_close(outputs(prepared, images)["descriptor"], expected, rtol=0, atol=5e-6)
    assert [value.grad is not None for value in step.parameters] == [True] * len(step.parameters)
