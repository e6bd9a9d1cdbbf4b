"""Checkpoints in every form, what is refused and why, and downloads from a server of our own."""

import functools
import hashlib
import http.server
import itertools
import os
import pickle
import re
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import save_published, small_checkpoint, write_safetensors
from helpers.models import MODES, build, reference_model, sketched
from helpers.processes import NOT_TORCH, run_python

from model import (
    AGGREGATIONS,
    BACKBONES,
    ImageConfig,
    InputError,
    ModelChoice,
    ModelConfig,
    checkpoint_files,
    downloads,
    weights,
    zoo,
)
from utils.integrations.safetensors_file import export_safetensors

LOAD = """
import sys, torch
from model import GeoLocalizationNet, ModelConfig, weights
model = GeoLocalizationNet(ModelConfig(backbone="vit-tiny"))
for path in sys.argv[1:]:
    weights.load_weights(model, path)
    print(f"{model.linear1.weight.double().sum().item():.6f}")
"""


def tiny(mode="float", aggregation="gem"):
    """vit-tiny with reference parameters."""
    return reference_model("vit-tiny", aggregation, **MODES[mode])


def blank(**flags):
    """vit-tiny without any parameters of its own."""
    return sketched(**flags).to_empty(device="cpu")


@pytest.fixture(scope="module")
def reference():
    """The entries of the float vit-tiny with reference parameters."""
    return tiny().state_dict()


def expect_loaded(path, reference):
    """Loads a checkpoint into a new float vit-tiny and compares every entry."""
    model = blank()
    weights.load_weights(model, path)
    own = model.state_dict()
    assert own.keys() == reference.keys()
    assert all(torch.equal(own[name], value) for name, value in reference.items())


@functools.cache
def untouched():
    """A float vit-tiny that no test may change."""
    return tiny()


def refusal(path, model=None):
    """The message with which a checkpoint is refused, of one or two lines; the model stays as it was."""
    model = model or untouched()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        weights.load_weights(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def test_published_form(tmp_path, reference):
    paths = [save_published(reference, tmp_path / f"published_{version}.pth", version) for version in (1, 2)]
    for version, path in enumerate(paths, 1):
        pickled = next(content for name, content in entries(path).items() if name.endswith("data.pkl"))
        assert (b"numpy.core." in pickled, b"numpy._core." in pickled) == (version == 1, version == 2)
        expect_loaded(path, reference)
    result = run_python(LOAD, *paths, cwd=tmp_path, without=NOT_TORCH)
    assert result.stdout == 2 * f"{reference['linear1.weight'].double().sum().item():.6f}\n", result.stderr


def entries(path):
    """The files inside a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


WRAPPED = ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize("form", ["bare", "bare with module.", "legacy", "ours", *WRAPPED, "compiled backbone"])
def test_other_forms(tmp_path, reference, form):
    path = tmp_path / "model.pth"
    content = {
        "bare": reference,
        "legacy": reference,
        "bare with module.": {f"module.{name}": value for name, value in reference.items()},
        **{prefix: {f"{prefix}{name}": value for name, value in reference.items()} for prefix in WRAPPED},
        "compiled backbone": {
            name.replace("backbone.blocks.", "backbone._orig_mod.blocks._orig_mod."): value
            for name, value in reference.items()
        },
        "ours": {"model_state_dict": reference, "config": {"backbone": "vit-tiny", "rerank": False}, "epoch": 3},
    }[form]
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    expect_loaded(path, reference)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_pickle_protocol_is_named(tmp_path, reference, protocol, legacy):
    path = tmp_path / "model.pth"
    torch.save(reference, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    try:
        torch.load(path, weights_only=True)
    except Exception:
        message = refusal(path)
        assert f"was saved with pickle protocol {protocol}" in message and "save it again" in message
    else:  # some versions of PyTorch read protocol 3
        expect_loaded(path, reference)


@pytest.mark.parametrize(
    ("of", "into", "words"),
    [
        ("two_branch", "float", ["unexpected", "backbone.adapters_hashing.0.", "--hashing --rerank", "eval_rerank.py"]),
        ("float", "two_branch", ["missing", "backbone.adapters_hashing.0.", "vit-tiny --aggregation=gem", "eval.py"]),
        ("hashing", "float", ["missing", "backbone.adapters.0.", "unexpected", "--hashing", "eval_hashing.py"]),
        ("salad", "float", ["aggregation.dust_bin", "linear1.weight", "--aggregation=salad"]),
        ("boq", "float", ["--aggregation=boq"]),
    ],
)
def test_another_model_is_refused_with_the_likely_flags(tmp_path, of, into, words):
    source = tiny(of) if of in MODES else tiny(aggregation=of)
    torch.save(source.state_dict(), tmp_path / "other.pth")
    message = refusal(tmp_path / "other.pth", tiny(into))
    assert all(word in message for word in words), message


def test_another_backbone_is_refused_with_both_shapes(tmp_path):
    torch.save(placeholders(sketched("dinov2-small").state_dict()), tmp_path / "small.pth")
    message = refusal(tmp_path / "small.pth")
    assert all(word in message for word in ("of another shape", "backbone.cls_token 1x1x384 instead of 1x1x192"))
    first_line = f"{tmp_path / 'small.pth'} looks like a model for --backbone=dinov2-small --aggregation=gem "
    assert message.startswith(first_line)


def test_a_cls_token_without_a_width_is_no_model(tmp_path, reference):
    torch.save({**reference, "backbone.cls_token": torch.tensor(1.0)}, tmp_path / "scalar.pth")
    assert "does not look like a SelaVPR++ model" in refusal(tmp_path / "scalar.pth")
    torch.save({"cls_token": torch.tensor(1.0)}, tmp_path / "scalar.pth")
    assert "no DINOv2 weights" in foundation_refusal(tmp_path / "scalar.pth")


def placeholders(state):
    """Zeros of these shapes that take no room in a file."""
    return {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}


def test_one_entry_missing_unexpected_or_of_another_shape(tmp_path, reference):
    path = tmp_path / "model.pth"
    for change, words in (
        ({"linear2.bias": None}, "1 missing (linear2.bias)"),
        ({"linear9.bias": torch.ones(1)}, "1 unexpected (linear9.bias)"),
        ({"linear2.bias": torch.ones(7)}, "1 of another shape (linear2.bias 7 instead of 512)"),
    ):
        torch.save({name: value for name, value in {**reference, **change}.items() if value is not None}, path)
        assert words in refusal(path)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_model_is_recognised_by_its_entries(backbone):
    kinds = [("gem", MODES["hashing"]), ("salad", MODES["two_branch"])]
    if backbone == "vit-tiny":
        kinds += itertools.product(AGGREGATIONS, (MODES["float"], MODES["two_branch"]))
    for aggregation, flags in kinds:
        model = sketched(backbone, aggregation, **flags)
        assert weights.guess_config(model.state_dict()) == model.config


@pytest.mark.parametrize("backbone", ["dinov2-base", "dinov2-base-reg", "dinov2-large", "dinov2-large-reg"])
@pytest.mark.parametrize("lost", ["backbone.blocks.7.", "backbone.adapters.3.", "linear2."])
def test_an_incomplete_model_is_recognised_too(backbone, lost):
    model = sketched(backbone)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(lost)}
    assert len(state) < len(model.state_dict())
    assert weights.guess_config(state) == model.config


def test_backbones_that_differ_in_depth_or_adapters_alone_are_told_apart(monkeypatch):
    tiny = BACKBONES["vit-tiny"]
    for name, other in (("deep", replace(tiny, depth=14)), ("few", replace(tiny, num_adapters=4))):
        monkeypatch.setitem(BACKBONES, name, other)
    for name in ("vit-tiny", "deep", "few"):
        assert weights.guess_config(sketched(name, hashing=True).state_dict()) == ModelConfig(
            backbone=name, hashing=True
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_converted(tmp_path, reference, dtype):
    torch.save({**reference, "linear2.bias": reference["linear2.bias"].to(dtype)}, tmp_path / "model.pth")
    model = blank()
    weights.load_weights(model, tmp_path / "model.pth")
    assert torch.equal(model.linear2.bias, reference["linear2.bias"].to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_other_types_are_refused(tmp_path, reference, dtype):
    torch.save({**reference, "linear2.bias": torch.ones(512).to(dtype)}, tmp_path / "model.pth")
    name = str(dtype).removeprefix("torch.")
    assert f"1 of another type (linear2.bias {name} instead of float32)" in refusal(tmp_path / "model.pth")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_values_that_are_not_finite_are_refused(tmp_path, reference, dtype, value):
    entry = reference["linear2.bias"].to(dtype).clone()
    entry[7] = value
    torch.save({**reference, "linear2.bias": entry}, tmp_path / "model.pth")
    assert "contains NaN or infinity in 1 of" in (message := refusal(tmp_path / "model.pth"))
    assert "(linear2.bias)" in message
    entry[:] = torch.finfo(torch.float16).max  # finite, even where the sum of an entry is not
    weights.load_state(
        torch.nn.Linear(1, 512), {"weight": entry[:, None].float(), "bias": entry.float() * 1e33}, "file"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_an_integer_entry_takes_integers_only(dtype):
    model = torch.nn.BatchNorm1d(2)
    state = {**model.state_dict(), "num_batches_tracked": torch.tensor(7, dtype=torch.int32)}
    weights.load_state(model, state, "file", description="looks fine")
    assert model.num_batches_tracked == 7
    with pytest.raises(InputError, match=r"1 of another type \(num_batches_tracked .* instead of int64\)"):
        weights.load_state(model, {**state, "num_batches_tracked": torch.tensor(1, dtype=dtype)}, "file")


@pytest.mark.filterwarnings("ignore")  # PyTorch's about prototypes of sparse and nested tensors
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (lambda: {7: torch.ones(2)}, "7 has a key of type int"),
        (lambda: {"linear2.bias": 0.5}, "'linear2.bias' is a float"),
        (lambda: {"linear2.bias": [1.0]}, "'linear2.bias' is a list"),
        (lambda: {"linear2.bias": torch.ones(512).to_sparse()}, "'linear2.bias' is a sparse or nested tensor"),
        (lambda: {"linear2.bias": torch.eye(512).to_sparse_csr()}, "'linear2.bias' is a sparse or nested tensor"),
        (lambda: {"linear2.bias": torch.nested.nested_tensor([torch.ones(2)])}, "is a sparse or nested tensor"),
        (lambda: {"linear2.bias": torch.empty(512, device="meta")}, "'linear2.bias' is a meta tensor"),
        (lambda: {"linear2.bias": torch.quantize_per_tensor(torch.ones(512), 1, 0, torch.qint8)}, "is a quantised"),
        (lambda: {"module.linear2.bias": torch.ones(512)}, "both 'linear2.bias' and 'module.linear2.bias'"),
    ],
)
def test_entries_that_are_no_dense_tensor_with_one_name(tmp_path, reference, entry, words):
    few = {name: value for name, value in reference.items() if name.startswith("linear")}
    for wrap in (dict, lambda state: {"model_state_dict": state}):
        torch.save(wrap({**few, **entry()}), tmp_path / "model.pth")
        assert words in refusal(tmp_path / "model.pth")


def equal(first, second):
    """Whether two dicts of tensors and values are equal, types included."""
    return list(first) == list(second) and all(
        type(first[name]) is type(value)
        and (torch.equal(first[name], value) and first[name].dtype == value.dtype if name != "epoch" else value == 3)
        for name, value in second.items()
    )


@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_never_gives_other_weights(tmp_path):
    path = tmp_path / "flipped.pth"
    expected = small_checkpoint(path)
    data, refused = bytearray(path.read_bytes()), 0
    for position in range(0, len(data), 5):
        bit = 1 << position % 8
        data[position] ^= bit
        path.write_bytes(data)
        data[position] ^= bit
        try:
            assert equal(weights.read_checkpoint(path), expected), f"byte {position}"
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > len(data) / 20


def test_the_damaged_record_is_named(tmp_path, reference):
    path = tmp_path / "model.pth"
    torch.save(reference, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "is damaged: its record model/data/" in refusal(path)


def test_a_record_that_is_marked_as_a_folder_is_refused(tmp_path):
    """PyTorch leaves its tensor uninitialised; Python's zipfile reads it."""
    path = tmp_path / "model.pth"
    small_checkpoint(path)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"model/data/0") - 8] ^= 0x10  # the attributes of its entry in the directory
    path.write_bytes(data)
    with pytest.raises(InputError, match="its record model/data/0 cannot be verified"):
        weights.read_checkpoint(path)


@pytest.fixture
def without_checksums():
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


def test_a_file_saved_without_checksums_loads_with_a_warning(tmp_path, without_checksums, caplog):
    expected = small_checkpoint(tmp_path / "model.pth")
    assert equal(weights.read_checkpoint(tmp_path / "model.pth"), expected)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "model.pth was saved without checksums" in record.getMessage()


def test_one_checksum_that_is_zero_is_damage(tmp_path, caplog):
    path = tmp_path / "model.pth"
    small_checkpoint(path)
    with zipfile.ZipFile(path) as archive:
        checksum = archive.getinfo("model/data/0").CRC.to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(checksum, bytes(4)))
    with pytest.raises(InputError, match="model/data/0 cannot be verified"):
        weights.read_checkpoint(path)
    assert not caplog.records


def test_the_file_that_was_verified_is_the_one_that_is_loaded(tmp_path, monkeypatch):
    path, other = tmp_path / "model.pth", tmp_path / "other.pth"
    expected = small_checkpoint(path)
    torch.save({"other": torch.ones(3)}, other)
    verify = checkpoint_files._verify_archive

    def verify_and_replace(*arguments):
        verify(*arguments)
        os.replace(other, path)

    monkeypatch.setattr(checkpoint_files, "_verify_archive", verify_and_replace)
    assert equal(weights.read_checkpoint(path), expected)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("container", ["torch", "legacy torch", "pickle", "in the model"])
def test_pickled_code_is_refused_and_not_run(tmp_path, reference, container):
    path, trace = tmp_path / "trap.pth", tmp_path / "trace"
    if container == "pickle":
        path.write_bytes(pickle.dumps({"model_state_dict": Trap(trace)}, protocol=2))
    elif container == "in the model":
        torch.save({"model_state_dict": {**reference, "linear1.weight": Trap(trace)}}, path)
    else:
        torch.save(
            {"model_state_dict": reference, "epoch_num": Trap(trace)},
            path,
            _use_new_zipfile_serialization=container == "torch",
        )
    message = refusal(path)
    assert "pickled code" in message and "open" in message
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace), protocol=2)).close()
    assert trace.exists()  # the trap works


@pytest.mark.parametrize("part", [0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(tmp_path, reference, part, zipped):
    path = tmp_path / "cut.pth"
    torch.save(reference, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    message = refusal(path)
    assert "truncated" in message and "not a checkpoint" in message


@pytest.mark.parametrize(
    "content", [b"These are not the weights.\n" * 50, b"\x00" * 1000, b"<!DOCTYPE html><html></html>"]
)
def test_no_checkpoint_at_all(tmp_path, content):
    (tmp_path / "notes.pth").write_bytes(content)
    message = refusal(tmp_path / "notes.pth")
    assert "not a checkpoint" in message
    assert content[0] == 0 or f"beginning with {content[:40].decode()!r}" in message


def test_no_file(tmp_path):
    assert "the file does not exist" in refusal(tmp_path / "none.pth")
    assert "this is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a file" in refusal(tmp_path / "fifo")
    (tmp_path / "empty.pth").touch()
    assert "the file is empty" in refusal(tmp_path / "empty.pth")


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            lambda path: np.savez(path.open("wb"), a=np.ones(2)),
            "is a ZIP archive but not a checkpoint: it contains a.npy",
        ),
        (lambda path: torch.jit.script(torch.nn.ReLU()).save(path), "is a TorchScript archive; expected a state dict"),
    ],
)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_other_kinds_of_files_are_named(tmp_path, write, words, name):
    write(tmp_path / name)
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (torch.ones(3), "Tensor"),
        ([1, 2], "list"),
        ({"epoch_num": 3, "recalls": [1.0]}, "epoch_num, recalls"),
        ({}, "none"),
        ({"model_state_dict": {}}, "model_state_dict"),
        ({"model_state_dict": torch.ones(2)}, "model_state_dict"),
    ],
)
def test_a_file_without_a_model(tmp_path, content, word):
    torch.save(content, tmp_path / "other.pth")
    assert word in refusal(tmp_path / "other.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("mode", "aggregation"), [("float", "salad"), ("hashing", "gem"), ("two_branch", "boq")])
def test_a_checkpoint_of_ours_names_its_model(tmp_path, suffix, mode, aggregation):
    model = reference_model("vit-tiny", aggregation, **MODES[mode])
    model.image_config = ImageConfig(resize=(126, 140), antialias=False)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(weights.model_content(model), path)
    else:
        pytest.importorskip("safetensors")
        export_safetensors(model, path)
    assert weights.find_config(checkpoint_files.read_checkpoint(path), path) == model.config
    loaded = weights.load_model(ModelChoice(), path)
    assert loaded.config == model.config and loaded.image_config == model.image_config and not loaded.training
    assert equal(loaded.state_dict(), model.state_dict())


def test_what_a_checkpoint_states_takes_precedence_over_what_its_entries_suggest(tmp_path):
    """And must be true: an entry that the stated model lacks is refused."""
    content = weights.model_content(reference_model())
    path = tmp_path / "model.pth"
    torch.save(content | {"model_config": content["model_config"] | {"aggregation": "boq"}}, path)
    with pytest.raises(InputError, match=r"does not fit the model.\nState-dict entries: .* missing \(aggregation"):
        weights.load_model(ModelChoice(), path)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (["vit-tiny"], "list"),
        ({"backbone": "vit-tiny"}, "Expected the fields aggregation, backbone, hashing, rerank"),
        ({"backbone": "vit-tiny", "aggregation": "gem", "hashing": 1, "rerank": 0}, "must be true or false"),
        ({"backbone": "vit-9", "aggregation": "gem", "hashing": False, "rerank": False}, "Unknown backbone 'vit-9'"),
        ({"backbone": [], "aggregation": "gem", "hashing": False, "rerank": False}, "unhashable"),
    ],
)
def test_a_checkpoint_that_states_no_model_of_ours(tmp_path, stated, words):
    path = tmp_path / "model.pth"
    torch.save(weights.model_content(reference_model()) | {"model_config": stated}, path)
    with pytest.raises(InputError, match=f"{re.escape(str(path))} states a model that does not exist here, .*{words}"):
        weights.load_model(ModelChoice(), path)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ([56, 56], "not a mapping"),
        ({"antialias": True}, "resize"),
        ({"resize": [56], "antialias": True}, "not enough values"),
        ({"resize": [56.0, 56.0], "antialias": True}, "two whole numbers"),
        ({"resize": [56, 56], "antialias": 1}, "true or false"),
        ({"resize": [56, 56], "antialias": True, "mode": "cubic"}, "mode"),
        ({"resize": [56, 50], "antialias": True}, "multiples of 14"),
    ],
)
def test_a_checkpoint_that_states_images_that_its_model_cannot_take(tmp_path, stated, words):
    path = tmp_path / "model.pth"
    torch.save(weights.model_content(reference_model()) | {"image_config": stated}, path)
    with pytest.raises(InputError, match=f"{re.escape(str(path))} states images that its model cannot .*{words}"):
        weights.load_any_model(path)


def test_a_checkpoint_that_states_no_images(tmp_path):
    """Ours before 0.2, and the authors'."""
    torch.save(weights.model_content(build()), tmp_path / "model.pth")
    assert weights.load_any_model(tmp_path / "model.pth").image_config is None


@pytest.mark.parametrize(
    ("choice", "checkpoint", "expected"),
    [
        ({}, None, {"backbone": "dinov2-large"}),
        ({"backbone": "vit-tiny"}, None, {"backbone": "vit-tiny"}),
        ({"hashing": True, "rerank": True}, {"aggregation": "boq"}, {"aggregation": "boq", **MODES["two_branch"]}),
        ({"hashing": True, "rerank": False}, {"aggregation": "boq"}, {"hashing": True}),
        ({"aggregation": "salad"}, {"backbone": "vit-tiny"}, {"aggregation": "salad", "backbone": "vit-tiny"}),
        ({"hashing": False, "rerank": False}, MODES["two_branch"], {}),
    ],
)
def test_what_the_user_states_takes_precedence_over_the_checkpoint(choice, checkpoint, expected):
    found = None if checkpoint is None else ModelConfig(**checkpoint)
    assert ModelChoice(**choice).resolve(found) == ModelConfig(**expected)


@pytest.mark.parametrize("choice", [ModelChoice(), ModelChoice(aggregation="gem", hashing=False, rerank=False)])
def test_a_file_of_no_model_of_ours_is_not_taken_for_the_default(tmp_path, choice):
    torch.save({"model_state_dict": {"fc.weight": torch.ones(2, 2)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth does not look like a SelaVPR\+\+ model\.$"):
        weights.load_model(choice, tmp_path / "other.pth")


def test_a_safetensors_file_of_others_is_recognised(tmp_path):
    """It has the entries of a model, in half precision, and no word about it."""
    package = pytest.importorskip("safetensors.torch")
    state = reference_model(**MODES["two_branch"]).state_dict()
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    package.save_file(halves, tmp_path / "model.safetensors")
    loaded = weights.load_model(ModelChoice(), tmp_path / "model.safetensors")
    assert loaded.config == ModelConfig(backbone="vit-tiny", **MODES["two_branch"])
    assert all(torch.equal(value, halves[name].to(value.dtype)) for name, value in loaded.state_dict().items())


def test_a_safetensors_file_that_is_damaged(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    write_safetensors(path)
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"1", content.replace(b"F32", b"F99"), content.replace(b"[1]", b"[7]")):
        path.write_bytes(damaged)
        assert "is not a safetensors file, or is truncated or damaged" in refusal(path)
    path.write_bytes(content[:40])  # within the header
    assert "is not a safetensors file, or is truncated or damaged" in refusal(path)
    write_safetensors(path, {"model_config": "{"})
    assert "the metadata model_config is not JSON: '{'" in refusal(path)
    write_safetensors(path, {"model_config": "[" * 100_000})
    assert len(refusal(path)) < 1000 and "is not JSON: '[[[" in refusal(path)


def test_a_safetensors_file_without_the_package(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "model.pth")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install -r requirements-safetensors.txt" in refusal(tmp_path / "model.pth")


def trunk_state(model):
    """The trunk's entries under DINOv2's names."""
    state = model.backbone.state_dict()
    return {name: value for name, value in state.items() if not name.startswith(("adapters.", "adapters_hashing."))}


@pytest.mark.parametrize("mode", MODES)
def test_load_foundation(tmp_path, mode):
    expected = trunk_state(tiny())
    torch.save(expected, tmp_path / "dinov2.pth")
    model = build("vit-tiny", **MODES[mode])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert weights.load_foundation(model, tmp_path / "dinov2.pth") == tmp_path / "dinov2.pth"
    assert len(expected) == 4 + 1 + 12 * 14 + 2  # tokens, position, patches, blocks, norm
    for name, value in model.state_dict().items():
        trunk_name = name.removeprefix("backbone.")
        assert torch.equal(
            value, expected[trunk_name] if trunk_name in expected and name.startswith("backbone.") else before[name]
        ), name


def foundation_refusal(path):
    """The message with which load_foundation refuses a file for vit-tiny."""
    with pytest.raises(InputError) as caught:
        weights.load_foundation(tiny(), path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_foundation_of_another_trunk(tmp_path):
    torch.save(placeholders(trunk_state(sketched("dinov2-small"))), tmp_path / "dinov2.pth")
    message = foundation_refusal(tmp_path / "dinov2.pth")
    assert all(word in message for word in ("width 384", "--backbone=vit-tiny", "width 192"))


@pytest.fixture
def with_registers(monkeypatch):
    """The name of a vit-tiny with four registers."""
    monkeypatch.setitem(BACKBONES, "vit-tiny-reg", replace(BACKBONES["vit-tiny"], num_registers=4))
    return "vit-tiny-reg"


def test_foundation_with_registers(tmp_path, with_registers):
    """DINOv2's entries, register_tokens [1, 4, D] among them, and not those of a backbone without registers."""
    source = reference_model(with_registers)
    torch.save(trunk_state(source), tmp_path / "reg.pth")
    torch.save(trunk_state(tiny()), tmp_path / "plain.pth")
    assert trunk_state(source).keys() - trunk_state(tiny()).keys() == {"register_tokens"}
    model = build(with_registers, hashing=True, rerank=True)
    weights.load_foundation(model, tmp_path / "reg.pth")
    assert equal(trunk_state(model), trunk_state(source))
    assert model.backbone.register_tokens.shape == (1, 4, 192) and model.backbone.register_tokens.any()
    with pytest.raises(InputError, match="weights of width 192. --backbone=vit-tiny-reg .* width 192 with 4 registers"):
        weights.load_foundation(model, tmp_path / "plain.pth")
    assert "weights of width 192 with 4 registers. --backbone=vit-tiny " in foundation_refusal(tmp_path / "reg.pth")


def test_a_checkpoint_with_registers_is_loaded(tmp_path, with_registers):
    model = reference_model(with_registers, "salad")
    path = save_published(model.state_dict(), tmp_path / "reg.pth")
    loaded = weights.load_model(ModelChoice(), path)
    assert loaded.config == model.config and equal(loaded.state_dict(), model.state_dict())
    assert "unexpected (backbone.register_tokens)" in refusal(path, tiny(aggregation="salad"))


def test_an_incomplete_foundation_and_what_is_none(tmp_path, reference):
    assert "no DINOv2 weights" in foundation_refusal(save_published(reference, tmp_path / "selavpr.pth"))
    state = trunk_state(tiny())
    del state["blocks.3.ls1.gamma"]
    torch.save(state, tmp_path / "dinov2.pth")
    assert "1 missing (blocks.3.ls1.gamma)" in foundation_refusal(tmp_path / "dinov2.pth")


def test_dinov2_weights_given_as_the_whole_model(tmp_path):
    torch.save(trunk_state(tiny()), tmp_path / "dinov2.pth")
    message = refusal(tmp_path / "dinov2.pth")
    assert "DINOv2" in message and "--foundation_model_path" in message


class Server:
    """HTTP server. `files` {path: bytes}; `cut`: those that end before their length; `chunked`: those broken off;
    `requests`: what came.
    """

    def __init__(self) -> None:
        self.files, self.cut, self.chunked, self.requests = {}, set(), set(), []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append(self.path)
                self.close_connection = True
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                if self.path in outer.chunked:  # breaks off in the first chunk
                    self.send_header("Transfer-Encoding", "chunked")
                    content = f"{len(content):x}\r\n".encode() + content[: len(content) // 2]
                else:
                    self.send_header("Content-Length", str(len(content) + 1000 * (self.path in outer.cut)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch.hub's cache in a folder of its own; gives the folder that checkpoints go to. vit-tiny is "published" here
    as tiny.pth.
    """
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(str(tmp_path / "hub"))
    entry = zoo.PublishedModel(config=ModelConfig(backbone="vit-tiny"), file="tiny.pth")
    monkeypatch.setattr(zoo, "MODEL_ZOO", [entry])
    return tmp_path / "hub" / "checkpoints"


def publish(monkeypatch, *addresses):
    """Makes these the addresses of published checkpoints."""
    monkeypatch.setattr(zoo, "MIRRORS", tuple(f"{address}/{{}}" for address in addresses))


def load_published():
    """A float vit-tiny with the "published" weights, and their file."""
    return weights.load_any_model("tiny"), weights.model_file("tiny")


@pytest.fixture
def whole(tmp_path, reference):
    """The bytes of a whole published checkpoint."""
    return save_published(reference, tmp_path / "whole.pth").read_bytes()


def test_download_once(server, cache, monkeypatch, whole, reference):
    publish(monkeypatch, server.address + "/a", server.address + "/b")
    server.files["/a/tiny.pth"] = whole
    for _ in range(2):
        model, path = load_published()
        assert path == cache / "tiny.pth" and path.read_bytes() == whole
        assert torch.equal(model.linear2.weight, reference["linear2.weight"])
        assert server.requests == ["/a/tiny.pth"]
        assert list(cache.iterdir()) == [path]


def test_the_mirror_is_used_when_the_first_address_fails(server, cache, monkeypatch, whole):
    publish(monkeypatch, server.address + "/a", "http://127.0.0.1:9/closed", server.address + "/b")
    server.files["/b/tiny.pth"] = whole
    assert load_published()[1].read_bytes() == whole
    assert server.requests == ["/a/tiny.pth", "/b/tiny.pth"]


@pytest.mark.parametrize("how", ["short", "length", "chunked", "page"])
def test_what_is_not_whole_is_not_kept_and_the_mirror_is_tried(server, cache, monkeypatch, whole, how):
    publish(monkeypatch, server.address + "/a", server.address + "/b")
    bad = b"<html>Sign in to this network</html>" if how == "page" else whole[:-500]
    server.files["/a/tiny.pth"] = server.files["/b/tiny.pth"] = bad
    server.cut = {"/a/tiny.pth", "/b/tiny.pth"} if how == "length" else set()
    server.chunked = {"/a/tiny.pth", "/b/tiny.pth"} if how == "chunked" else set()
    with pytest.raises(InputError) as caught:
        load_published()
    words = (f"{server.address}/a/tiny.pth", f"{server.address}/b/tiny.pth", "--model")
    assert all(word in str(caught.value) for word in words)
    assert list(cache.iterdir()) == []
    server.files["/b/tiny.pth"] = whole
    server.cut, server.chunked = server.cut - {"/b/tiny.pth"}, server.chunked - {"/b/tiny.pth"}
    assert load_published()[1].read_bytes() == whole


def test_an_unpublished_combination_lists_the_published_ones():
    with pytest.raises(InputError) as caught:
        zoo.find_published(tiny().config)
    asked_for, published = str(caught.value).split("Published:")
    assert "vit-tiny gem float" in asked_for
    names = itertools.product(("dinov2-base", "dinov2-large"), ("float", "two-branch"))
    assert all(f"{backbone} gem {kind}" in published for backbone, kind in names)


def test_dinov2_download(server, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "DINOV2_URL", server.address + "/dinov2_{}/dinov2_{}_pretrain.pth")
    monkeypatch.setitem(zoo.FOUNDATIONS, "vit-tiny", zoo.Foundation("tiny14"))
    with pytest.raises(InputError) as caught:
        weights.load_foundation(blank())
    address = f"{server.address}/dinov2_tiny14/dinov2_tiny14_pretrain.pth"
    words = (address, str(cache / "dinov2_tiny14_pretrain.pth"), "--foundation_model_path")
    assert all(word in str(caught.value) for word in words)
    torch.save(trunk_state(tiny()), tmp_path / "dinov2.pth")
    server.files["/dinov2_tiny14/dinov2_tiny14_pretrain.pth"] = (tmp_path / "dinov2.pth").read_bytes()
    model = tiny()
    with torch.no_grad():
        model.backbone.norm.weight.zero_()
    assert weights.load_foundation(model) == cache / "dinov2_tiny14_pretrain.pth"
    assert torch.equal(model.backbone.norm.weight, tiny().backbone.norm.weight)


def sha256(data):
    """The checksum that a maintainer writes into the zoo."""
    return hashlib.sha256(data).hexdigest()


def publish_with_checksum(monkeypatch, checksum):
    """Gives the only published checkpoint this checksum."""
    monkeypatch.setattr(zoo, "MODEL_ZOO", [replace(zoo.MODEL_ZOO[0], sha256=checksum)])


def assert_names_both_sums(message, actual, expected):
    """The refusal says what came, what is published, and how to go on knowingly."""
    assert f"the SHA-256 is {actual}, but that of the published file is {expected}." in message
    assert f"accept it with the environment variable {downloads.ACCEPT}={actual}." in message


def test_a_download_with_another_checksum_is_not_kept_and_the_mirror_is_tried(
    server, cache, monkeypatch, whole, tmp_path
):
    publish(monkeypatch, server.address + "/a", server.address + "/b")
    publish_with_checksum(monkeypatch, sha256(whole))
    torch.save({"other": torch.ones(3)}, tmp_path / "other.pth")
    server.files["/a/tiny.pth"] = other = (tmp_path / "other.pth").read_bytes()
    with pytest.raises(InputError) as caught:
        load_published()
    assert_names_both_sums(str(caught.value), sha256(other), sha256(whole))
    assert list(cache.iterdir()) == []
    server.files["/b/tiny.pth"] = whole
    assert load_published()[1].read_bytes() == whole


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_file_with_another_checksum_is_used_only_where_the_user_accepts_that_checksum(
    is_cached, server, cache, monkeypatch, whole, reference, caplog
):
    """A pin that is wrong, or a file that its host has replaced, must not lock anybody out."""
    publish(monkeypatch, server.address)
    publish_with_checksum(monkeypatch, 64 * "a")
    server.files["/tiny.pth"] = whole
    if is_cached:
        cache.mkdir(parents=True)
        (cache / "tiny.pth").write_bytes(whole)
    for accepted in ("", "1", 64 * "b", sha256(whole)[:-1]):
        monkeypatch.setenv(downloads.ACCEPT, accepted)
        with pytest.raises(InputError) as caught:
            load_published()
        assert_names_both_sums(str(caught.value), sha256(whole), 64 * "a")
        assert (cache / "tiny.pth").exists() == is_cached
    monkeypatch.setenv(downloads.ACCEPT, f"{64 * 'b'} {sha256(whole)}")
    model, path = load_published()
    assert path == cache / "tiny.pth" and torch.equal(
        model.state_dict()["backbone.norm.weight"], reference["backbone.norm.weight"]
    )
    assert f"Accepting a file with the SHA-256 {sha256(whole)} instead of {64 * 'a'}" in caplog.text


def test_dinov2_weights_are_verified_too(server, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "DINOV2_URL", server.address + "/dinov2_{}_{}.pth")
    monkeypatch.setitem(zoo.FOUNDATIONS, "vit-tiny", zoo.Foundation("tiny14", 64 * "a"))
    cache.mkdir(parents=True)
    torch.save(trunk_state(tiny()), cache / "dinov2_tiny14_tiny14.pth")
    with pytest.raises(InputError, match=64 * "a"):
        weights.load_foundation(blank())


def test_checksums_in_the_zoo_are_lower_case_sha256():
    checksums = [entry.sha256 for entry in (*zoo.MODEL_ZOO, *zoo.FOUNDATIONS.values()) if entry.sha256]
    assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in checksums)
    assert len(set(checksums)) == len(checksums) == 7


def test_what_names_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("trained").touch()
    for entry in zoo.MODEL_ZOO:
        assert zoo.find_model(entry.name) is entry
    for name in ("trained", "model.pth", "runs/model", "SelaVPRplusplus_base.pth", "/nowhere/model"):
        assert zoo.find_model(name) == Path(name)  # whether there is such a file, the main rank sees


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("SelaVPRplusplus_base_reranked", "SelaVPRplusplus_base_rerank"),
        ("selavprplusplus_large", "SelaVPRplusplus_large"),
        ("resnet", None),
        ("", None),
    ],
)
def test_what_names_no_model(name, guess):
    with pytest.raises(InputError) as caught:
        zoo.find_model(name)
    message = str(caught.value)
    assert message.startswith(f"{name!r} is neither a published model nor a file.") and ".safetensors" in message
    assert all(entry.name in message for entry in zoo.MODEL_ZOO)
    assert f"Did you mean {guess}?" in message if guess else "mean" not in message


def test_what_killed_downloads_of_earlier_versions_left_is_removed(server, cache, monkeypatch, whole, caplog):
    """Their names, and those of torch.hub in front of them."""
    publish(monkeypatch, server.address)
    server.files["/tiny.pth"] = whole
    cache.mkdir(parents=True)
    left = [cache / f"tiny.pth.1234.partial{end}" for end in ("", ".0123456789abcdef0123456789abcdef.partial")]
    others = [cache / name for name in ("other.pth.1234.partial", "tiny.pth.notes", "tiny.pth.12.partial.txt")]
    recent = cache / "tiny.pth.99.partial"
    for path in (*left, *others, recent):
        path.touch()
    for path in (*left, *others):
        os.utime(path, (time.time() - 3700, time.time() - 3700))
    with caplog.at_level("INFO"):
        load_published()
    assert sorted(cache.iterdir()) == sorted([cache / "tiny.pth", recent, *others])
    assert all(any(f"Removing {path}," in message for message in caplog.messages) for path in left)


def test_no_dinov2_weights_exist_for_vit_tiny():
    with pytest.raises(InputError, match="vit-tiny.*dinov2-small, dinov2-base, dinov2-large, dinov2-base-reg"):
        weights.load_foundation(tiny())


def test_the_addresses_are_the_published_ones():
    """DESIGN.md 4."""
    entry = zoo.find_published(ModelConfig(backbone="dinov2-large", hashing=True, rerank=True))
    assert entry.urls == [
        "https://github.com/Lu-Feng/SelaVPRplusplus/releases/download/SelaVPR%2B%2B/SelaVPRplusplus_large_rerank.pth",
        "https://huggingface.co/fenglu96/SelaVPRplusplus/resolve/main/SelaVPRplusplus_large_rerank.pth",
    ]
    names = {f"SelaVPRplusplus_{size}{kind}.pth" for size in ("base", "large") for kind in ("", "_rerank")}
    assert {entry.file for entry in zoo.MODEL_ZOO} == names
    base = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vit"
    expected = {
        f"dinov2-{size}{suffix}": f"{base}{size[0]}14/dinov2_vit{size[0]}14{file}_pretrain.pth"
        for size, suffix, file in [(size, "", "") for size in ("small", "base", "large")]
        + [(size, "-reg", "_reg4") for size in ("base", "large")]
    }
    assert {name: entry.url for name, entry in zoo.FOUNDATIONS.items()} == expected


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    small_checkpoint(tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in entries(tmp_path / "model.pth").items():
            archive.writestr(name, record)
    with pytest.raises(InputError, match="packed.pth is damaged: .*it is compressed"):
        weights.read_checkpoint(tmp_path / "packed.pth")
