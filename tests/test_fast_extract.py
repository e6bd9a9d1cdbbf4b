"""Extraction's and training's fast ways against the plain ones: pieces, halved batches, bf16, compiled models."""
import numpy as np
import pytest
import torch
from helpers import MODES, filled

from datasets.photos import read_photo
from datasets.transforms import normalize, resize_photo
from model import build_model
from utils.checkpoint import Progress, restore, save_checkpoint
from utils.features import ExtractionSettings, extract, extract_batch, extract_pieces
from utils.losses import float_losses, hashing_losses
from utils.training import freeze, make_scaler, set_training_mode, training_step

SETTINGS = ExtractionSettings((56, 70), batch_size=3)


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        model = build_model("vit-tiny", "gem", **MODES["two_branch"])
    return filled(model)


@pytest.fixture(scope="module")
def paths(tiny_benchmark):
    return sorted((tiny_benchmark / "tiny" / "images" / "test" / "database").iterdir())


def plain_features(model, paths):
    """Codes and descriptors of one photo after the other."""
    codes, descriptors = [], []
    for path in paths:
        with torch.no_grad():
            _, code, descriptor = model(normalize(resize_photo(read_photo(path), SETTINGS.size))[None])
        codes.append(np.packbits(code[0].numpy() > 0))
        descriptors.append(descriptor[0].numpy())
    return np.stack(codes), np.stack(descriptors)


@pytest.mark.parametrize("pieces", [[range(0, 16)], [range(0, 5), range(5, 6), range(6, 16)]])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pieces_of_one_stream(model, paths, pieces, num_workers):
    codes, descriptors = plain_features(model, paths)
    found = list(extract_pieces(model, paths, pieces, SETTINGS._replace(num_workers=num_workers)))
    for piece, part in zip(pieces, found, strict=True):
        np.testing.assert_array_equal(part.codes, codes[piece.start:piece.stop])
        np.testing.assert_allclose(part.descriptors, descriptors[piece.start:piece.stop], atol=1e-5, rtol=0)


def test_a_piece_does_not_depend_on_those_before_it(model, paths):
    *_, last = extract_pieces(model, paths, [range(0, 4), range(4, 12)], SETTINGS)
    np.testing.assert_array_equal(last.descriptors, extract(model, paths[4:12], SETTINGS).descriptors)


class SmallMemory(torch.nn.Module):
    """Runs out of memory above so many images; counts its calls."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most, self.sizes = model, most, []

    def forward(self, images, float_branch):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(images, float_branch)


def test_out_of_memory_halves_the_batch_once_and_for_all(model, paths, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    small = SmallMemory(model, 2)
    found = extract(small, paths, SETTINGS._replace(batch_size=7))
    assert small.sizes == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1, 2]
    assert [record.args for record in caplog.records] == [(7, 4), (4, 2)]
    codes, descriptors = plain_features(model, paths)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.descriptors, descriptors, atol=1e-5, rtol=0)


def test_out_of_memory_for_a_single_photo_is_an_error(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        extract_batch(SmallMemory(model, 0), torch.rand(3, 3, 56, 56), SETTINGS, True, 3)


@pytest.mark.parametrize("name", ["linear2.weight", "linear4.weight"])
def test_what_is_not_finite_is_refused_before_anything_keeps_it(paths, name):
    with torch.device("meta"):
        model = build_model("vit-tiny", "gem", **MODES["two_branch"])
    filled(model, {})
    dict(model.named_parameters())[name].data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        extract(model, paths[:2], SETTINGS)


def test_bf16_is_near_fp32(model, paths):
    plain, fast = (extract(model, paths, SETTINGS._replace(precision=precision)) for precision in ("fp32", "bf16"))
    assert fast.descriptors.dtype == np.float32
    assert 1e-4 < np.linalg.norm(fast.descriptors - plain.descriptors, axis=1).max() < 0.1
    assert np.unpackbits(fast.codes ^ plain.codes).mean() < 0.05


@pytest.fixture(autouse=True)
def a_compiler_without_code(monkeypatch):
    """Compiling as far as the graph of the forward pass, which is where what is frozen or saved could go wrong; kernels would take minutes."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager"))
    yield
    torch._dynamo.reset()


def test_a_compiled_model_extracts_the_same(model, paths):
    plain = extract(model, paths[:7], SETTINGS)
    with torch.device("meta"):
        compiled = build_model("vit-tiny", "gem", **MODES["two_branch"])
    filled(compiled).compile()
    fast = extract(compiled, paths[:7], SETTINGS)  # batches of 3, 3 and 1
    np.testing.assert_array_equal(fast.codes, plain.codes)
    np.testing.assert_allclose(fast.descriptors, plain.descriptors, atol=1e-5, rtol=0)
    assert list(compiled.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("mode", ["float", "two_branch"])
def test_a_compiled_model_trains_the_same_and_its_checkpoint_goes_on_without(tmp_path, mode):
    two = mode == "two_branch"
    labels = torch.arange(4).repeat_interleave(2)
    images = torch.rand(8, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    runs = []
    for compiled in (False, True):
        with torch.device("meta"):
            model = build_model("vit-tiny", "gem", **MODES[mode])
        filled(model)
        trainable = freeze(model, binary_branch=two, train_backbone=False)
        set_training_mode(model)
        if compiled:
            model.compile()
        optimizer = torch.optim.SGD(trainable, 0.1)
        scaler = make_scaler("cpu", "fp32")
        losses = [training_step(model, optimizer, scaler, hashing_losses if two else float_losses, images, labels, not two) for _ in range(2)]
        runs.append((model, losses, optimizer, scaler))
    for plain, fast in zip(runs[0][1], runs[1][1], strict=True):
        assert float(fast.total) == pytest.approx(float(plain.total), rel=1e-4)
    for (name, plain), fast in zip(runs[0][0].named_parameters(), runs[1][0].parameters(), strict=True):
        assert (fast.grad is None) == (plain.grad is None) == (not plain.requires_grad), name
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-3, msg=name)
    save_checkpoint(tmp_path / "last.pth", runs[1][0], runs[1][2], runs[1][3], Progress(epoch=3), {"compile": True})
    checkpoint = torch.load(tmp_path / "last.pth", weights_only=True)
    assert restore(checkpoint, tmp_path / "last.pth", runs[0][0], runs[0][2], runs[0][3], {"compile": False}).epoch == 3
    torch.testing.assert_close(runs[0][0].state_dict(), runs[1][0].state_dict(), atol=0, rtol=0)
