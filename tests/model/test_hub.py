"""The torch.hub entry: every kind of model, with torch alone, and beside modules of the same names."""

import shutil

import pytest
import torch
from helpers.checkpoints import save_published
from helpers.models import MODES, build, filled, image_batch, sketched
from helpers.processes import NOT_TORCH, ROOT, run_python

from model import BACKBONES, GeoLocalizationNet
from model.zoo import MODEL_ZOO

LOAD = f"""
import sys, torch
ROOT = {str(ROOT)!r}
network = torch.hub.load(ROOT, "SelaVPRplusplus", source="local", trust_repo=True, FLAGS)
"""
TINY = 'backbone="vit-tiny", pretrained=False'


def load(**flags):
    """The hub entry of this repository."""
    return torch.hub.load(str(ROOT), "SelaVPRplusplus", source="local", trust_repo=True, **flags)


@pytest.mark.parametrize(
    ("aggregation", "mode"),
    [("boq", "float"), ("salad", "float"), ("gem", "hashing"), ("gem", "two_branch"), ("salad", "two_branch")],
)
def test_every_kind_of_model(aggregation, mode):
    flags = {"hashing": False, "rerank": False, **MODES[mode]}
    network = load(backbone="vit-tiny", aggregation=aggregation, pretrained=False, **flags)
    assert not any(module.training for module in network.modules())
    assert not isinstance(network, torch.nn.DataParallel)
    with torch.inference_mode():
        output = network(torch.from_numpy(image_batch(0, 1, 126, 140)))
    assert (
        type(output).__name__ == {"float": "Tensor", "hashing": "HashingOutput", "two_branch": "TwoBranchOutput"}[mode]
    )
    assert (output if mode == "float" else output[-1]).shape == (1, network.descriptor_dim or 512)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"backbone": "resnet50"}, ["'resnet50'", "dinov2-large"]),
        ({"backbone": "vit-tiny", "aggregation": "vlad"}, ["'vlad'", "salad"]),
        ({"backbone": "vit-tiny", "pretrained": True}, ["Published: dinov2-base gem float", "pretrained=False"]),
        ({"backbone": "vit-tiny", "hashing": False}, ["rerank", "hashing"]),
    ],
)
def test_names_that_do_not_exist(flags, words):
    with pytest.raises(ValueError) as caught:
        load(**{"pretrained": False, **flags})
    assert type(caught.value).__name__ == "InputError"
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_keywords_of_the_reference(tmp_path):
    model = filled(build(**MODES["two_branch"]))
    path = save_published(model.state_dict(), tmp_path / "model.pth")
    network = load(backbone="vit-tiny", resume=str(path))
    assert not network.training and torch.equal(network.linear4.weight, model.linear4.weight)
    with pytest.raises(ValueError, match="looks like a model for .* --hashing --rerank"):
        load(backbone="vit-tiny", hashing=False, rerank=False, resume=str(path))
    trunk = {name: value for name, value in model.backbone.state_dict().items() if not name.startswith("adapters")}
    torch.save(trunk, tmp_path / "dinov2.pth")
    dinov2 = {"backbone": "vit-tiny", "foundation_model_path": str(tmp_path / "dinov2.pth")}
    start = load(**dinov2, pretrained=False)
    assert torch.equal(start.backbone.norm.weight, model.backbone.norm.weight)
    assert not torch.equal(start.linear4.weight, model.linear4.weight)
    for flags in ({}, {"resume": str(path), "pretrained": False}):
        with pytest.raises(ValueError, match="foundation_model_path applies to a model at the start of training"):
            load(**dinov2, **flags)


@pytest.fixture
def downloaded(tmp_path):
    """The repository as torch.hub finds it after a download: <owner>/<repository>:<branch> in its cache."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    (tmp_path / "owner_SelaVPRplusplus_main").symlink_to(ROOT)
    yield "owner/SelaVPRplusplus:main"
    torch.hub.set_dir(before)


def test_torch_hub_lists_the_models_and_what_makes_them_faster(downloaded):
    names = torch.hub.list(downloaded, trust_repo=True)
    others = ["PlaceRecognizer", "SelaVPRplusplus", "prepare_for_inference"]
    assert sorted(names) == sorted([*others, *(entry.name for entry in MODEL_ZOO)])


@pytest.mark.parametrize("entry", MODEL_ZOO, ids=lambda entry: entry.name)
def test_one_function_per_published_checkpoint(downloaded, entry):
    name = entry.name
    text = torch.hub.help(downloaded, name, trust_repo=True)
    with torch.device("meta"):
        network = torch.hub.load(downloaded, name, trust_repo=True, pretrained=False)
        outputs = network(torch.empty(2, 3, 70, 70))
    assert f'"{name}")' in text and f"{millions(network)} parameters" in text  # an example to copy
    assert repr(network.config) == repr(entry.config)
    descriptor = outputs if isinstance(outputs, torch.Tensor) else outputs[-1]
    assert descriptor.shape == (2, BACKBONES[entry.config.backbone].gem_dim)


def millions(network):
    """The number of parameters as the docs state it."""
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f} M"


@pytest.mark.parametrize("entry", MODEL_ZOO, ids=lambda entry: entry.name)
def test_the_documentation_says_what_the_published_models_return(entry):
    lines = (ROOT / "docs/models.md").read_text().splitlines()
    row, *_ = (line for line in lines if line.startswith(f"| `{entry.name}` |"))
    _, _, backbone, parameters, returns, size, _ = (cell.strip() for cell in row.split("|"))
    with torch.device("meta"):
        network = GeoLocalizationNet(entry.config)
    assert (backbone, parameters) == (entry.config.backbone, millions(network))
    assert returns == (
        "logits, code, descriptor" if entry.config.rerank else f"descriptor [B, {network.descriptor_dim}]"
    )
    assert size == "64 + " * entry.config.rerank + str(4 * network.descriptor_dim)


def test_torch_alone_suffices(tmp_path):
    code = (
        LOAD.replace("FLAGS", TINY)
        + """
with torch.inference_mode():
    print(*(tuple(part.shape) for part in network(torch.rand(2, 3, 70, 56))))

prepared = torch.hub.load(ROOT, "prepare_for_inference", network, torch.bfloat16, source="local")
print(*(tuple(part.shape) for part in prepared(torch.rand(2, 3, 70, 56))))
"""
    )
    result = run_python(code, cwd=tmp_path, without=(*NOT_TORCH, "tqdm", "scipy"), env={"PYTHONPATH": ""})
    assert result.stdout == 2 * "(2, 512) (2, 512) (2, 512)\n", result.stderr


def test_published_weights_where_torch_alone_is_installed(tmp_path):
    state = sketched("dinov2-base").state_dict()
    # One value an entry, so that the file is small.
    state = {
        name: torch.tensor(i, dtype=value.dtype).expand(value.shape) for i, (name, value) in enumerate(state.items())
    }
    cached = tmp_path / "home" / "hub" / "checkpoints" / "SelaVPRplusplus_base.pth"
    cached.parent.mkdir(parents=True)
    save_published(state, cached)
    code = f"""{LOAD.replace("FLAGS", TINY)}
import dataclasses
zoo = sys.modules[type(network).__module__.replace("network", "zoo")]
zoo.MODEL_ZOO[0] = dataclasses.replace(zoo.MODEL_ZOO[0], sha256=None)  # these are other weights
{LOAD.replace("FLAGS", 'backbone="dinov2-base", hashing=False, rerank=False')}
print(type(network).__name__, network.training, all((value == i).all().item() for i, value in
enumerate(network.state_dict().values())))
"""
    result = run_python(
        code, cwd=tmp_path, without=NOT_TORCH, env={"TORCH_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    )
    assert result.stdout == "GeoLocalizationNet False True\n", result.stderr


OWN = ("model.py", "utils.py", "datasets/__init__.py", "hubconf.py")


def write_program(folder, code):
    """Writes main.py, and beside it modules with the names of ours, as a program may have them."""
    for name in OWN:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("NAME = 'mine'\n")
    (folder / "main.py").write_text(code)


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_a_program_keeps_its_own_modules(tmp_path, first):
    imports = "import model, utils, datasets, hubconf\n"
    code = LOAD.replace("FLAGS", TINY)
    write_program(tmp_path, imports + code if first == "theirs" else code + imports)
    check = """
import runpy
sys.path.insert(0, "")
names = runpy.run_path("main.py")
print(*(names[name].NAME for name in ("model", "utils", "datasets", "hubconf")))
print(*(tuple(part.shape) for part in names["network"](torch.rand(2, 3, 70, 56))))
root = names["ROOT"]
files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
loaded = {name for name, file in files.items() if file.startswith(root) and "site-packages" not in file}
print({name.split(".")[0].split("_")[0] for name in loaded}, root in sys.path)
"""
    result = run_python("import torch" + check, cwd=tmp_path, env={"PYTHONPATH": ""})
    expected = "mine mine mine mine\n(2, 512) (2, 512) (2, 512)\n{'selavprplusplus'} False\n"
    assert result.stdout == expected, result.stderr


def test_what_is_loaded_twice_or_in_several_threads_is_one_package(tmp_path):
    code = f"""
import sys, threading, torch
from concurrent.futures import ThreadPoolExecutor
sys.setswitchinterval(1e-6)
ready = threading.Barrier(4)
def load(_):
    ready.wait()
    return torch.hub.load({str(ROOT)!r}, "SelaVPRplusplus", source="local", {TINY})
networks = [*ThreadPoolExecutor(4).map(load, range(4)), *ThreadPoolExecutor(4).map(load, range(4))]
print(len(networks), len({{type(network) for network in networks}}))
"""
    result = run_python(code, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert result.stdout == "8 1\n", result.stderr


def test_two_checkouts_of_different_versions_in_one_process(tmp_path):
    for name, bits in (("first", 512), ("second", 256)):
        shutil.copytree(ROOT / "model", tmp_path / name / "model")
        shutil.copy(ROOT / "hubconf.py", tmp_path / name)
        config = tmp_path / name / "model" / "config.py"
        source = config.read_text()
        assert source.count("\nCODE_BITS = 512 ") == 1
        config.write_text(source.replace("\nCODE_BITS = 512 ", f"\nCODE_BITS = {bits} "))
    code = f"""
import torch
networks = [torch.hub.load(name, "SelaVPRplusplus", source="local", {TINY}) for name in ("first", "second", "first")]
for network in networks:
    print(network(torch.rand(1, 3, 56, 70)).code.shape[1], isinstance(network, type(networks[0])))
torch.hub.load("second", "prepare_for_inference", networks[0], source="local")
"""
    result = run_python(code, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert result.stdout == "512 True\n256 False\n512 True\n", result.stderr
    last = result.stderr.splitlines()[-1]
    assert "InputError: The model is a selavprplusplus_" in last and "that loaded it" in last, result.stderr


@pytest.mark.filterwarnings("ignore")
def test_pickles_copies_and_traces_of_a_loaded_model(tmp_path):
    """Another process, which has loaded the entry, reads the pickle of the whole module."""
    code = LOAD.replace("FLAGS", TINY + ", hashing=False, rerank=False")
    images = "images = torch.rand(2, 3, 56, 70, generator=torch.Generator().manual_seed(0))\n"
    write = """
import copy, pickle, warnings
warnings.simplefilter("ignore")
torch.save(network, "whole.pth")
with torch.inference_mode():
    expected = network(images)
    copies = copy.deepcopy(network), pickle.loads(pickle.dumps(network)), torch.jit.trace(network, images[:1])
    print(*(torch.equal(each(images), expected) for each in copies))
torch.save(expected, "expected.pth")
"""
    read = """
network = torch.load("whole.pth", weights_only=False)
with torch.inference_mode():
    print(torch.equal(network(images), torch.load("expected.pth")))
"""
    for more, expected in ((write, "True True True\n"), (read, "True\n")):
        result = run_python(code + images + more, cwd=tmp_path, env={"PYTHONPATH": ""})
        assert result.stdout == expected, result.stderr
