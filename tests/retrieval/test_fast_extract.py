"""The fast ways of extraction and training against plain ones: chunks, halved batches, bf16, compiled models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import MODES, reference_model

from datasets.image_set import ImageSet
from datasets.resizing import resize_image
from model import InputError
from model.image_files import load_image
from model.images import normalize
from model.network import TwoBranchOutput, sign
from utils.retrieval import extraction
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import Extractor, Forward, extract, extract_chunks, prepare
from utils.retrieval.features import DiskArray
from utils.runtime import distributed
from utils.training.checkpoints import RunCheckpoint, TrainState, restore, save_checkpoint
from utils.training.config import TrainingConfig
from utils.training.losses import float_losses, hashing_losses
from utils.training.step import TrainingStep, set_training_mode

SETTINGS = ExtractionConfig(resize=(56, 70), batch_size=3)


@pytest.fixture(scope="module")
def model():
    return reference_model("vit-tiny", "gem", **MODES["two_branch"])


@pytest.fixture(scope="module")
def prepared(model):
    return prepare(model, SETTINGS)


def extract_with(model, images, config=SETTINGS, **options):
    """The features by a prepared model."""
    return extract(Extractor(model=model, config=config), images, **options)


@pytest.fixture(scope="module")
def images(tiny_benchmark):
    paths = sorted((tiny_benchmark / "tiny" / "images" / "test" / "database").iterdir())
    return ImageSet.without_positions([str(path) for path in paths])


@pytest.fixture(scope="module")
def plain_features(model, images):
    """Codes and descriptors of one image after the other."""
    codes, descriptors = [], []
    for path in images.paths:
        with torch.no_grad():
            _, code, descriptor = model(normalize(resize_image(load_image(path), SETTINGS.resize))[None])
        codes.append(np.packbits(code[0].numpy() > 0))
        descriptors.append(descriptor[0].numpy())
    return np.stack(codes), np.stack(descriptors)


@pytest.mark.parametrize("size", [16, 5, 1])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_chunks_of_one_stream(plain_features, prepared, images, size, num_workers, monkeypatch):
    monkeypatch.setattr(extraction, "CHUNK_SIZE", size)
    codes, descriptors = plain_features
    chunks = list(extract_chunks(prepared, images, replace(SETTINGS, num_workers=num_workers)))
    assert [len(chunk.images) for chunk in chunks] == [min(size, 16 - start) for start in range(0, 16, size)]
    assert [path for chunk in chunks for path in chunk.images.paths] == images.paths
    np.testing.assert_array_equal(np.concatenate([chunk.codes for chunk in chunks]), codes)
    np.testing.assert_allclose(np.concatenate([chunk.descriptors for chunk in chunks]), descriptors, atol=1e-5, rtol=0)


def test_a_chunk_does_not_depend_on_those_before_it(prepared, images, monkeypatch):
    monkeypatch.setattr(extraction, "CHUNK_SIZE", 8)
    *_, last = extract_chunks(prepared, images, SETTINGS)
    np.testing.assert_array_equal(last.descriptors, extract_with(prepared, images[8:]).descriptors)


@pytest.mark.parametrize("dim", [512, 0])
def test_descriptors_beyond_their_share_of_memory_go_to_a_nameless_file(prepared, images, dim, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "CHUNK_SIZE", 5)
    config = replace(SETTINGS, memory_share=1e-12, temporary_folder=tmp_path)
    expected = extract_with(prepared, images, float_branch=dim > 0)
    found = extract_with(prepared, images, config, float_branch=dim > 0)
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert list(tmp_path.iterdir()) == []
    if dim:
        assert isinstance(expected.descriptors, np.ndarray) and isinstance(found.descriptors, DiskArray)
        np.testing.assert_array_equal(found.descriptors[:], expected.descriptors)
        np.testing.assert_array_equal(found.descriptors[np.array([7, 1, 1])], expected.descriptors[[7, 1, 1]])
    else:
        assert found.descriptors is expected.descriptors is None


class SmallMemory(torch.nn.Module):
    """Runs out of memory above so many images; counts its calls."""

    def __init__(self, model, limit):
        super().__init__()
        self.model, self.limit, self.sizes = model, limit, []

    def forward(self, images, float_branch):
        self.sizes.append(len(images))
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(images, float_branch)


def test_out_of_memory_halves_the_batch_once_and_for_all(plain_features, prepared, images, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    small = SmallMemory(prepared, 2)
    found = extract_with(small, images, replace(SETTINGS, batch_size=7))
    assert small.sizes == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1, 2]
    assert [record.args for record in caplog.records] == [(7, 4), (4, 2)]
    codes, descriptors = plain_features
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.descriptors, descriptors, atol=1e-5, rtol=0)


def test_out_of_memory_for_a_single_image_is_an_error(prepared, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        Forward(SmallMemory(prepared, 0), SETTINGS)(torch.rand(3, 3, 56, 56))


@pytest.mark.parametrize("name", ["linear2.weight", "linear4.weight"])
def test_what_is_not_finite_is_refused_before_anything_stores_it(images, name):
    model = reference_model("vit-tiny", "gem", **MODES["two_branch"])
    dict(model.named_parameters())[name].data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        extract_with(prepare(model, SETTINGS), images[:2])


class Dead(torch.nn.Module):
    """Outputs of a two-branch model, of which one part is the same for all images."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, images, float_branch):
        mean = images.mean(dim=(2, 3)).repeat(1, 171)[:, :512]
        outputs = {"logits": mean, "code": sign(mean), "descriptor": mean}
        if self.part:
            outputs[self.part] = torch.full_like(mean, 0.25)
        return TwoBranchOutput(**outputs)


@pytest.mark.parametrize(("part", "named"), [("descriptor", "descriptor"), ("logits", "code"), (None, None)])
@pytest.mark.parametrize("chunk", [1, 16])
def test_one_and_the_same_output_for_images_that_differ_is_an_error(images, part, named, chunk, monkeypatch):
    monkeypatch.setattr(extraction, "CHUNK_SIZE", chunk)
    same = ImageSet.without_positions([images.paths[0]] * 3)
    assert len(list(extract_chunks(Dead(part), same, SETTINGS))) == -(-3 // chunk)  # copies of one image
    if part is None:
        list(extract_chunks(Dead(part), images, SETTINGS))
        return
    with pytest.raises(InputError, match=f"images differ, but the model gives them all one and the same {named}"):
        list(extract_chunks(Dead(part), images[:2], SETTINGS))
    monkeypatch.setattr(distributed, "any_rank", lambda flag: True)  # another rank has outputs that differ
    list(extract_chunks(Dead(part), images[:2], SETTINGS))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_damaged_images_are_named_at_once(images, tmp_path, num_workers, monkeypatch):
    monkeypatch.setattr(extraction, "CHUNK_SIZE", 5)
    paths = list(images.paths)
    for i in (3, 4, 11):
        paths[i] = str(tmp_path / f"damaged{i}.jpg")
        (tmp_path / f"damaged{i}.jpg").write_bytes(b"text")
    forward = extraction.Forward.__call__
    batches = []
    monkeypatch.setattr(extraction.Forward, "__call__", lambda self, x: batches.append(len(x)) or forward(self, x))
    chunks, config = [], replace(SETTINGS, num_workers=num_workers)
    with pytest.raises(InputError) as caught:
        chunks.extend(extract_chunks(Dead(None), ImageSet.without_positions(paths), config))
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"Cannot read the image {paths[3]}: this is not a JPEG or PNG file")
    assert second.startswith("2 more of the 16 images cannot be used: ") and paths[4] in second and paths[11] in second
    assert batches == [3], "after the first, images are only read"
    monkeypatch.setattr(extraction, "MAX_NAMED", 1)
    with pytest.raises(InputError, match="; and 1 more$"):
        list(extract_chunks(Dead(None), ImageSet.without_positions(paths), config))


def test_bf16_is_near_fp32(model, images):
    configs = (SETTINGS, replace(SETTINGS, precision="bf16"))
    plain, fast = (extract_with(prepare(model, config), images, config) for config in configs)
    assert fast.descriptors.dtype == np.float32
    assert 1e-4 < np.linalg.norm(fast.descriptors - plain.descriptors, axis=1).max() < 0.1
    assert np.unpackbits(fast.codes ^ plain.codes).mean() < 0.05


@pytest.fixture(autouse=True)
def a_compiler_without_code(monkeypatch):
    """Compiling as far as the graph of the forward pass, where what is frozen could go wrong; kernels take minutes."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager"))
    yield
    torch._dynamo.reset()


def test_a_compiled_model_extracts_the_same(shallow_vit, images):
    model = reference_model("vit-tiny", "gem", **MODES["two_branch"])
    plain = extract_with(prepare(model, SETTINGS), images[:7])
    compiled = prepare(model, replace(SETTINGS, compile=True))
    fast = extract_with(compiled, images[:7])  # batches of 3, 3 and 1
    np.testing.assert_array_equal(fast.codes, plain.codes)
    np.testing.assert_allclose(fast.descriptors, plain.descriptors, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["float", "two_branch"])
def test_a_compiled_model_trains_the_same_and_its_checkpoint_goes_on_without(shallow_vit, tmp_path, mode):
    two = mode == "two_branch"
    criterion, branch = (hashing_losses, "binary") if two else (float_losses, "float")
    labels = torch.arange(4).repeat_interleave(2)
    images = torch.rand(8, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    runs = []
    for compiled in (False, True):
        model = reference_model("vit-tiny", "gem", **MODES[mode])
        config = TrainingConfig(optim="sgd", lr=0.1, compile=compiled)
        step = TrainingStep(model, config, criterion=criterion, branch=branch)
        set_training_mode(model)
        runs.append((model, [step(images, labels) for _ in range(2)], step))
    for plain, fast in zip(runs[0][1], runs[1][1], strict=True):
        assert float(fast.total) == pytest.approx(float(plain.total), rel=1e-4)
    for (name, plain), fast in zip(runs[0][0].named_parameters(), runs[1][0].parameters(), strict=True):
        assert (fast.grad is None) == (plain.grad is None) == (not plain.requires_grad), name
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-3, msg=name)
    (tmp_path / "best_model.pth").touch()
    save_checkpoint(tmp_path / "last.pth", runs[1][2], TrainState(arguments={"lr": 0.1}, epoch=3))
    content = torch.load(tmp_path / "last.pth", weights_only=True)
    checkpoint = RunCheckpoint(tmp_path / "last.pth", content, written=0)
    assert restore(checkpoint, runs[0][2], TrainState(arguments={"lr": 0.1})).epoch == 3
    torch.testing.assert_close(runs[0][0].state_dict(), runs[1][0].state_dict(), atol=0, rtol=0)
