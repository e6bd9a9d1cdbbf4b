"""The export to ONNX: files give the model's outputs in onnxruntime, and none is left if anything is wrong.

The vision transformer has a single block here, because the exporter takes seconds for each.
"""

import functools
import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.checkpoints import save_published
from helpers.models import MODES, image_batch, reference_model
from helpers.pages import blocks
from helpers.processes import NOT_TORCH, ROOT, last_of_each, run_python
from PIL import Image

import export
from datasets.resizing import resize_image
from model import BACKBONES, InputError
from model.config import ViTConfig
from model.files import TEMPORARY
from model.images import normalize
from model.versions import VERSION
from utils.cli.export import parse_export
from utils.integrations import onnx_export
from utils.integrations.onnx_export import checked_images, compare, output_errors, reference_outputs

MISSING = [name for name in onnx_export.PACKAGES if importlib.util.find_spec(name) is None]
needs_packages = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (requirements-onnx.txt)"
)
ONE_BLOCK = ViTConfig(embed_dim=192, depth=1, num_heads=3, num_adapters=1, gem_dim=512)
EXPORTS = {  # name: (aggregation, mode, (H, W), flags)
    "float": ("salad", "float", (126, 140), []),
    "two_branch": ("gem", "two_branch", (84, 56), []),
    "half": ("boq", "float", (70, 56), ["--fp16", "--no_normalization", "--no_antialias"]),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """exported(name): the file and the model of one of EXPORTS; the file is written by the script."""
    folder = tmp_path_factory.mktemp("onnx")

    @functools.cache
    def export(name):
        aggregation, mode, size, flags = EXPORTS[name]
        with pytest.MonkeyPatch.context() as patch:
            registers = 4 if mode == "two_branch" else 0
            patch.setitem(BACKBONES, "vit-tiny", replace(ONE_BLOCK, num_registers=registers))
            model = reference_model("vit-tiny", aggregation, **MODES[mode])
            save_published(model.state_dict(), folder / f"{name}.pth")
            run_main(patch, folder / f"{name}.pth", size, folder / f"{name}.onnx", *flags)
        return folder / f"{name}.onnx", model

    return export


def run_main(patch, checkpoint, size, output, *flags):
    """Runs the script in this process."""
    resize = ["--resize", *map(str, size)]
    patch.setattr(
        "sys.argv",
        ["export.py", "onnx", *last_of_each([f"--resume={checkpoint}", *resize, f"--output={output}", *flags])],
    )
    export.main(parse_export(None))


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_onnxruntime_gives_the_models_outputs_for_any_batch_size(exported, name):
    file, model = exported(name)
    _, mode, size, flags = EXPORTS[name]
    tolerance = 5e-3 if "--fp16" in flags else 1e-4
    session = session_of(file)
    outputs = [output.name for output in session.get_outputs()]
    assert outputs == (["descriptor"] if mode == "float" else ["code", "logits", "descriptor"])
    for batch in (1, 2, 5):
        normalised = torch.from_numpy(image_batch(batch, batch, *size))
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        images = normalised if "--no_normalization" in flags else normalised * std + mean
        actual = dict(zip(outputs, session.run(None, {"images": images.numpy()}), strict=True))
        with torch.inference_mode():
            expected = model(normalised)
        if mode != "float":
            logits = expected.logits.numpy()
            assert np.linalg.norm(actual["logits"] - logits, axis=1).max() <= tolerance
            assert actual["code"].dtype == np.uint8 and actual["code"].shape == (batch, 64)
            differ = np.unpackbits(actual["code"] ^ np.packbits(logits >= 0, axis=1), axis=1).astype(bool)
            assert not differ[abs(logits) > tolerance].any()
        descriptor = expected if mode == "float" else expected.descriptor
        assert actual["descriptor"].dtype == np.float32
        assert np.linalg.norm(actual["descriptor"] - descriptor.numpy(), axis=1).max() <= tolerance


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_shapes_are_fixed_but_for_the_batch_and_nothing_is_resized(exported, name):
    import onnx

    _, mode, size, flags = EXPORTS[name]
    file = onnx.load(exported(name)[0])
    for value in [*file.graph.input, *file.graph.output]:
        batch, *others = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch" and all(dim.dim_value for dim in others)
    assert [dim.dim_value for dim in file.graph.input[0].type.tensor_type.shape.dim[1:]] == [3, *size]
    assert "Resize" not in {node.op_type for node in file.graph.node}
    assert {opset.version for opset in file.opset_import if opset.domain == ""} == {18}
    assert file.ir_version == 8  # for onnxruntime before 1.18
    assert {node.domain for node in file.graph.node} == {""}  # operators that every runtime knows
    weights = {tensor.data_type for tensor in file.graph.initializer if len(tensor.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT16 if "--fp16" in flags else onnx.TensorProto.FLOAT}


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_branch", "half"])
def test_the_metadata_names_the_model_and_how_to_prepare_images(exported, name):
    file, model = exported(name)
    metadata = session_of(file).get_modelmeta().custom_metadata_map
    expected = {
        "project": f"SelaVPR++ {VERSION}",
        "model": "--backbone=vit-tiny --aggregation=gem --hashing --rerank",
        "precision": "fp32",
        "resize": "84 56",
        "interpolation": "bilinear, antialiased",
        "outputs": "code logits descriptor",
        "weights_sha256": model.fingerprint,
    }
    if name == "two_branch":
        assert metadata["input"] == "RGB in [0, 1]"
    else:
        expected |= {"precision": "fp16", "interpolation": "bilinear, not antialiased", "resize": "70 56"}
        expected |= {"model": "--backbone=vit-tiny --aggregation=boq", "outputs": "descriptor"}
        assert metadata["input"].endswith("minus mean 0.485 0.456 0.406, divided by std 0.229 0.224 0.225")
    assert metadata == {"input": metadata["input"], **expected}


@needs_packages
@pytest.mark.slow
def test_the_code_in_the_documentation_describes_an_image_file_without_pytorch(exported, tiny_benchmark, tmp_path):
    file, model = exported("two_branch")
    (code,) = (code for code in blocks(ROOT / "docs" / "integrations.md", "python") if "onnxruntime" in code)
    image = sorted((tiny_benchmark / "tiny/images/test/queries").iterdir())[0]
    code = code.replace('"model.onnx"', repr(str(file)))
    code = code.replace('"street.jpg"', repr(str(image))) + "\nnp.savez('outputs.npz', **outputs)"
    without = ("torch", "onnx", "onnxscript", "model", *(name for name in NOT_TORCH if name not in ("numpy", "PIL")))
    result = run_python(code, cwd=tmp_path, without=without)
    assert result.status == 0, result.stderr
    with torch.inference_mode():
        pixels = resize_image(Image.open(image).convert("RGB"), (84, 56))
        logits, code, descriptor = model(normalize(pixels)[None])
    outputs = np.load(tmp_path / "outputs.npz")
    assert np.linalg.norm(outputs["descriptor"] - descriptor.numpy()) <= 1e-4
    certain = logits.abs().numpy() > 1e-4
    assert (np.unpackbits(outputs["code"], axis=1)[certain] == (code.numpy() > 0)[certain]).all()


def test_a_fixed_position_embedding_changes_nothing():
    grid = (5, 8)
    model = reference_model("vit-tiny")
    images = torch.from_numpy(image_batch(0, 1, 14 * grid[0], 14 * grid[1]))
    with torch.inference_mode():
        expected = model(images)
    model.backbone.fix_positions(torch.nn.Parameter(model.backbone.position_embedding(*grid)), grid)
    assert model.backbone.pos_embed.shape == (1, 1 + grid[0] * grid[1], 192)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"prepared for \(5, 8\) patches, but the image has \(8, 5\)"):
        model(images.transpose(2, 3))


def arrays(**changes):
    """Outputs of a two-branch model for two images, of which the first bit's logit is close to 0."""
    logits = np.random.default_rng(0).choice([-0.05, 0.05], (2, 512)).astype(np.float32)
    logits[0, 0] = 5e-5
    descriptor = np.full((2, 4), 0.5, np.float32)
    return {"code": np.packbits(logits >= 0, axis=1), "logits": logits, "descriptor": descriptor} | changes


def test_errors_within_the_tolerance_are_measured_per_image():
    actual = arrays()
    actual["code"][0, 0] ^= 0b10000000
    actual["descriptor"][1] += 4e-5
    errors = output_errors(actual, arrays(), 1e-4)
    assert errors["code"] == 1 and errors["logits"] == 0
    assert errors["descriptor"] == pytest.approx(8e-5, rel=0.01)


@pytest.mark.parametrize(
    ("name", "index", "change"),
    [
        ("code", (0, 0), lambda value: value ^ 0b01000000),
        ("code", (1, 0), lambda value: value ^ 0b10000000),
        ("logits", (1, 3), lambda value: value + 3e-4),
        ("descriptor", (1, 3), lambda value: value + 3e-4),
        ("descriptor", (0, 0), lambda value: np.nan),
    ],
)
def test_larger_errors_are_refused(name, index, change):
    actual = arrays()
    actual[name][index] = change(actual[name][index])
    with pytest.raises(InputError, match=f"another {name} than PyTorch .*--fp16"):
        output_errors(actual, arrays(), 1e-4)


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize("i", range(3))
def test_every_checked_image_counts(exported, i):
    file, model = exported("two_branch")
    images = checked_images((84, 56))
    expected = reference_outputs(model, images)
    assert compare(file, images, expected, precision="fp32")["descriptor"] <= 1e-5
    expected["descriptor"][i] += 1e-3
    with pytest.raises(InputError, match="another descriptor"):
        compare(file, images, expected, precision="fp32")


@pytest.fixture
def ready(monkeypatch, tmp_path):
    """A checkpoint of the float model, in a folder of its own, and a script that need not export."""

    class File:
        def SerializeToString(self):
            return bytes(100_000)

    monkeypatch.setitem(BACKBONES, "vit-tiny", ONE_BLOCK)
    monkeypatch.setattr(onnx_export, "check_packages", lambda: None)
    monkeypatch.setattr(onnx_export, "build_proto", lambda *_, **__: File())
    monkeypatch.setattr(onnx_export, "compare", lambda *_, **__: {"descriptor": 0.0})
    return save_published(reference_model("vit-tiny").state_dict(), tmp_path / "model.pth")


def test_the_file_is_written_to_a_temporary_name_and_then_moved(ready, monkeypatch, tmp_path):
    present = []

    def look(file, *_, **__):
        present.append(sorted(path.name for path in tmp_path.iterdir()))
        return {"descriptor": 0.0}

    monkeypatch.setattr(onnx_export, "compare", look)
    run_main(monkeypatch, ready, (56, 56), tmp_path / "model.onnx")
    ((temporary, *others),) = present
    assert TEMPORARY.fullmatch(temporary) and others == ["model.pth"]
    assert (tmp_path / "model.onnx").stat().st_size == 100_000


def test_a_file_that_differs_from_the_model_is_not_kept(ready, monkeypatch, tmp_path):
    def differs(*_, **__):
        return output_errors(arrays(logits=np.zeros((2, 512), np.float32)), arrays(), 1e-4)

    monkeypatch.setattr(onnx_export, "compare", differs)
    with pytest.raises(InputError, match="another logits than PyTorch"):
        run_main(monkeypatch, ready, (56, 56), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_weights_beyond_the_limit_of_the_format_are_refused_before_the_export(monkeypatch):
    model = reference_model("vit-tiny")
    monkeypatch.setattr(onnx_export, "MAX_FILE_BYTES", 10**6)
    with pytest.raises(InputError, match="0.0 GB.*at most 2 GB.*--fp16"):
        onnx_export.build_proto(model, onnx_export.ExtractionConfig(resize=(56, 56)), normalize=True)


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        ("float", ["--resize", "100", "322"], ["100 x 322", "multiples of 14", "98 x 322"]),
        ("salad", ["--resize", "112", "112"], ["SALAD", "64", "8 x 8 = 64"]),
        ("float", ["--hashing", "--backbone=vit-tiny"], ["does not fit the model", "eval.py"]),
        ("float", ["--output=nowhere/model.onnx"], ["No folder nowhere for the file model.onnx"]),
        ("float", ["--resume=none.pth"], ["No checkpoint at none.pth"]),
    ],
)
def test_bad_input_is_refused(checkpoints, monkeypatch, tmp_path, capsys, model, flags, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx_export, "check_packages", lambda: None)
    with pytest.raises((SystemExit, InputError)) as refused:
        run_main(monkeypatch, checkpoints[model], (56, 56), "model.onnx", *flags)
    message = capsys.readouterr().err if refused.type is SystemExit else str(refused.value)
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", onnx_export.PACKAGES)
def test_missing_packages_are_named_with_the_remedy(monkeypatch, name):
    for package in onnx_export.PACKAGES:
        monkeypatch.setitem(sys.modules, package, torch)  # present, so that only one is missing
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"{name}.*Install them with: pip install -r requirements-onnx.txt"):
        onnx_export.check_packages()
