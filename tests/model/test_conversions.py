"""What users do with a model: half precision, copies, pickles and traces."""

import copy
import io

import pytest
import torch
from helpers.models import MODES, image_batch, reference_model

KINDS = [("gem", "float"), ("boq", "float"), ("salad", "float"), ("gem", "hashing"), ("gem", "two_branch")]


def outputs(model, images):
    """The model's outputs, as a tuple."""
    with torch.inference_mode():
        result = model(images)
    return result if isinstance(result, tuple) else (result,)


@pytest.fixture(params=KINDS, ids="-".join)
def model(request, shallow_vit):
    aggregation, mode = request.param
    return reference_model("vit-tiny", aggregation, **MODES[mode]).eval()


@pytest.fixture
def images():
    return torch.from_numpy(image_batch(3, 3, 126, 140))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_outputs_stay_float32_and_nearly_the_same(model, images, dtype):
    expected = outputs(model, images)
    converted = copy.deepcopy(model).to(dtype)
    assert {value.dtype for value in converted.state_dict().values() if value.is_floating_point()} == {dtype}
    for actual, exact in zip(outputs(converted, images.to(dtype)), expected, strict=True):
        assert actual.dtype == torch.float32
        assert (torch.cosine_similarity(actual, exact) > 0.98).all()
        if exact.shape[1] != 512 or exact.abs().max() < 1:  # not the codes, whose length is sqrt(512)
            torch.testing.assert_close(actual.norm(dim=1), torch.ones(3))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("aggregation", "mode"), [("boq", "float"), ("salad", "float"), ("gem", "two_branch")])
def test_a_saved_trace_gives_the_same_outputs_for_any_batch_size(shallow_vit, images, aggregation, mode):
    model, file = reference_model("vit-tiny", aggregation, **MODES[mode]), io.BytesIO()
    with torch.inference_mode():
        torch.jit.save(torch.jit.trace(model, images[:2]), file)
    file.seek(0)
    traced = torch.jit.load(file)
    for count in (1, 3):
        for actual, exact in zip(outputs(traced, images[:count]), outputs(model, images[:count]), strict=True):
            torch.testing.assert_close(actual, exact)


def test_training_still_passes_gradients_through_the_codes(images):
    model = reference_model("vit-tiny", **MODES["hashing"]).train()
    model(images).code.sum().backward()
    assert float(model.linear4.weight.grad.abs().max()) > 0
