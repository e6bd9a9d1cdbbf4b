"""Checkpoints in every form, what is refused and why, and downloads from a server of our own."""

import http.server
import pickle
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import MODES, NOT_TORCH, build, filled, run_python, save_published

from model import GeoLocalizationNet, InputError, ModelConfig, weights, zoo

LOAD = """
import sys, torch
from model import GeoLocalizationNet, ModelConfig, weights
model = GeoLocalizationNet(ModelConfig(backbone="vit-tiny"))
weights.load_weights(model, sys.argv[1])
print(f"{model.linear1.weight.double().sum().item():.6f}")
"""


def tiny(mode="float", aggregation="gem"):
    """vit-tiny with reference parameters."""
    with torch.device("meta"):
        model = build("vit-tiny", aggregation, **MODES[mode])
    return filled(model)


@pytest.fixture(scope="module")
def reference():
    """The entries of the float vit-tiny with reference parameters."""
    return tiny().state_dict()


def expect_loaded(path, reference):
    """Loads a checkpoint into a new float vit-tiny and compares every entry."""
    model = build("vit-tiny")
    weights.load_weights(model, path)
    own = model.state_dict()
    assert own.keys() == reference.keys()
    assert all(torch.equal(own[name], value) for name, value in reference.items())


def refusal(path, model=None):
    """The message with which a checkpoint is refused, of one or two lines; the model stays as it was."""
    model = model or tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        weights.load_weights(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


# ---- Forms


@pytest.mark.parametrize("numpy_version", [1, 2])
def test_published_form(tmp_path, reference, numpy_version):
    path = save_published(reference, tmp_path / "published.pth", numpy_version)
    pickled = next(content for name, content in entries(path).items() if name.endswith("data.pkl"))
    assert (b"numpy.core." in pickled, b"numpy._core." in pickled) == (numpy_version == 1, numpy_version == 2)
    expect_loaded(path, reference)
    result = run_python(LOAD, path, cwd=tmp_path, without=NOT_TORCH)
    assert result.stdout == f"{reference['linear1.weight'].double().sum().item():.6f}\n", result.stderr


def entries(path):
    """The files inside a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("form", ["bare", "bare with module.", "legacy", "ours"])
def test_other_forms(tmp_path, reference, form):
    path = tmp_path / "model.pth"
    content = {
        "bare": reference,
        "legacy": reference,
        "bare with module.": {f"module.{name}": value for name, value in reference.items()},
        "ours": {"model_state_dict": reference, "config": {"backbone": "vit-tiny", "rerank": False}, "epoch": 3},
    }[form]
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    expect_loaded(path, reference)


# ---- Models that do not fit


@pytest.mark.parametrize(
    ("of", "into", "words"),
    [
        ("two_branch", "float", ["unexpected", "backbone.adapters_hashing.0.", "--hashing --rerank", "eval_rerank.py"]),
        (
            "float",
            "two_branch",
            ["missing", "backbone.adapters_hashing.0.", "--backbone=vit-tiny --aggregation=gem", "eval.py"],
        ),
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
    with torch.device("meta"):
        small = build("dinov2-small").state_dict()
    torch.save(placeholders(small), tmp_path / "small.pth")
    message = refusal(tmp_path / "small.pth")
    assert all(
        word in message
        for word in ("of another shape", "backbone.cls_token 1x1x384 instead of 1x1x192", "--backbone=dinov2-small")
    )


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


# ---- Files that are no checkpoint


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
    assert "not a checkpoint" in refusal(tmp_path / "notes.pth")


def test_missing(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.pth")


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


# ---- DINOv2's weights


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
    with torch.device("meta"):
        small = trunk_state(build("dinov2-small"))
    torch.save(placeholders(small), tmp_path / "dinov2.pth")
    message = foundation_refusal(tmp_path / "dinov2.pth")
    assert all(word in message for word in ("width 384", "--backbone=vit-tiny", "width 192"))


def test_a_selavpr_checkpoint_is_no_foundation(tmp_path, reference):
    message = foundation_refusal(save_published(reference, tmp_path / "selavpr.pth"))
    assert "no DINOv2 weights" in message


def test_an_incomplete_foundation(tmp_path):
    state = trunk_state(tiny())
    del state["blocks.3.ls1.gamma"]
    torch.save(state, tmp_path / "dinov2.pth")
    assert "1 missing (blocks.3.ls1.gamma)" in foundation_refusal(tmp_path / "dinov2.pth")


def test_dinov2_weights_given_as_the_whole_model(tmp_path):
    torch.save(trunk_state(tiny()), tmp_path / "dinov2.pth")
    message = refusal(tmp_path / "dinov2.pth")
    assert "DINOv2" in message and "--foundation_model_path" in message


# ---- Downloads


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
    entry = zoo.PublishedModel(
        config=ModelConfig(backbone="vit-tiny"), file="tiny.pth", parameters_m=6.0, descriptor_dim=512
    )
    monkeypatch.setattr(zoo, "MODEL_ZOO", [entry])
    return tmp_path / "hub" / "checkpoints"


def publish(monkeypatch, *addresses):
    """Makes these the addresses of published checkpoints."""
    monkeypatch.setattr(zoo, "MIRRORS", tuple(f"{address}/{{}}" for address in addresses))


def load_published():
    """A float vit-tiny with the "published" weights, and their file."""
    model = build("vit-tiny")
    return model, weights.load_published(model)


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
    assert all(
        word in str(caught.value)
        for word in (f"{server.address}/a/tiny.pth", f"{server.address}/b/tiny.pth", "--resume")
    )
    assert list(cache.iterdir()) == []
    server.files["/b/tiny.pth"] = whole
    server.cut, server.chunked = server.cut - {"/b/tiny.pth"}, server.chunked - {"/b/tiny.pth"}
    assert load_published()[1].read_bytes() == whole


def test_offline(cache, monkeypatch):
    addresses = ["http://127.0.0.1:9/one", "http://127.0.0.1:9/two"]
    publish(monkeypatch, *addresses)
    with pytest.raises(InputError) as caught:
        load_published()
    message = str(caught.value)
    assert all(
        word in message
        for word in (f"{addresses[0]}/tiny.pth", f"{addresses[1]}/tiny.pth", str(cache / "tiny.pth"), "--resume")
    )
    assert len(message.splitlines()) <= 2


def test_an_unpublished_combination_lists_the_published_ones():
    with pytest.raises(InputError) as caught:
        weights.load_published(tiny())
    message = str(caught.value)
    assert "vit-tiny gem float" in message.split("Published:")[0]
    assert all(
        f"{backbone} gem {kind}" in message.split("Published:")[1]
        for backbone in ("dinov2-base", "dinov2-large")
        for kind in ("float", "two-branch")
    )


def test_dinov2_download(server, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "DINOV2_URL", server.address + "/dinov2_{0}/dinov2_{0}_pretrain.pth")
    monkeypatch.setitem(weights.DINOV2_NAMES, "vit-tiny", "tiny14")
    with pytest.raises(InputError) as caught:
        weights.load_foundation(build("vit-tiny"))
    address = f"{server.address}/dinov2_tiny14/dinov2_tiny14_pretrain.pth"
    assert all(
        word in str(caught.value)
        for word in (address, str(cache / "dinov2_tiny14_pretrain.pth"), "--foundation_model_path")
    )
    torch.save(trunk_state(tiny()), tmp_path / "dinov2.pth")
    server.files["/dinov2_tiny14/dinov2_tiny14_pretrain.pth"] = (tmp_path / "dinov2.pth").read_bytes()
    model = build("vit-tiny")
    assert weights.load_foundation(model) == cache / "dinov2_tiny14_pretrain.pth"
    assert torch.equal(model.backbone.norm.weight, tiny().backbone.norm.weight)


def test_no_dinov2_weights_exist_for_vit_tiny():
    with pytest.raises(InputError, match="vit-tiny.*dinov2-small, dinov2-base, dinov2-large"):
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
    assert zoo.DINOV2_URL.format(zoo.DINOV2_NAMES["dinov2-small"]) == (
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"
    )


@pytest.mark.parametrize("entry", zoo.MODEL_ZOO, ids=lambda entry: entry.file)
def test_the_sizes_in_the_zoo_are_those_of_the_models(entry):
    with torch.device("meta"):
        model = GeoLocalizationNet(entry.config)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == entry.parameters_m
    assert model.descriptor_dim == entry.descriptor_dim
