"""The torch.hub entry: every kind of model, where only torch is installed too, and beside another package named
`model`.
"""

import pytest
import torch
from helpers.checkpoints import save_published
from helpers.models import MODES, build, image_batch
from helpers.processes import NOT_TORCH, ROOT, run_python

from model import HashingOutput, InputError, TwoBranchOutput
from model.zoo import MODEL_ZOO

LOAD = f"""
import torch
network = torch.hub.load({str(ROOT)!r}, "SelaVPRplusplus", source="local", trust_repo=True, FLAGS)
"""


def load(**flags):
    """The hub entry of this repository."""
    return torch.hub.load(str(ROOT), "SelaVPRplusplus", source="local", trust_repo=True, **flags)


@pytest.mark.parametrize(
    ("aggregation", "mode"),
    [
        ("gem", "float"),
        ("boq", "float"),
        ("salad", "float"),
        ("gem", "hashing"),
        ("gem", "two_branch"),
        ("salad", "two_branch"),
    ],
)
def test_every_kind_of_model(aggregation, mode):
    flags = {"hashing": False, "rerank": False, **MODES[mode]}
    network = load(backbone="vit-tiny", aggregation=aggregation, pretrained=False, **flags)
    assert not any(module.training for module in network.modules())
    assert not isinstance(network, torch.nn.DataParallel)
    with torch.inference_mode():
        output = network(torch.from_numpy(image_batch(0, 1, 126, 140)))
    expected = {"float": torch.Tensor, "hashing": HashingOutput, "two_branch": TwoBranchOutput}[mode]
    assert isinstance(output, expected)
    assert (output if mode == "float" else output[-1]).shape == (1, network.descriptor_dim or 512)


def test_two_branch_is_what_you_get_without_flags():
    network = load(backbone="vit-tiny", pretrained=False)
    assert network.config.hashing and network.config.rerank


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"backbone": "resnet50"}, ["'resnet50'", "dinov2-large"]),
        ({"backbone": "vit-tiny", "aggregation": "vlad"}, ["'vlad'", "salad"]),
        (
            {"backbone": "vit-tiny", "pretrained": True},
            ["vit-tiny", "Published: dinov2-base gem float", "pretrained=False"],
        ),
        ({"backbone": "vit-tiny", "hashing": False}, ["rerank", "hashing"]),
    ],
)
def test_names_that_do_not_exist(flags, words):
    with pytest.raises(InputError) as caught:
        load(**{"pretrained": False, **flags})
    assert all(word in str(caught.value) for word in words), caught.value


def test_keywords_that_do_not_exist():
    with pytest.raises(TypeError, match="resize"):
        load(backbone="vit-tiny", pretrained=False, resize=322)


@pytest.fixture
def downloaded(tmp_path):
    """The repository as torch.hub finds it after a download: <owner>/<repository>:<branch> in its cache."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    (tmp_path / "owner_SelaVPRplusplus_main").symlink_to(ROOT)
    yield "owner/SelaVPRplusplus:main"
    torch.hub.set_dir(before)


def test_torch_hub_lists_the_models_and_nothing_else(downloaded):
    names = torch.hub.list(downloaded, trust_repo=True)
    assert sorted(names) == sorted(["SelaVPRplusplus", *(entry.name for entry in MODEL_ZOO)])


@pytest.mark.parametrize("entry", MODEL_ZOO, ids=lambda entry: entry.name)
def test_one_function_per_published_checkpoint(downloaded, entry):
    name = entry.name
    assert f'"{name}")' in torch.hub.help(downloaded, name, trust_repo=True)  # an example to copy
    with torch.device("meta"):
        network = torch.hub.load(downloaded, name, trust_repo=True, pretrained=False)
        outputs = network(torch.empty(2, 3, 70, 70))
    assert network.config == entry.config
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == entry.parameters_m
    descriptor = outputs if isinstance(outputs, torch.Tensor) else outputs[-1]
    assert descriptor.shape == (2, entry.descriptor_dim)


@pytest.mark.parametrize("entry", MODEL_ZOO, ids=lambda entry: entry.name)
def test_the_readme_lists_the_published_checkpoints(entry):
    (row,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{entry.name}` |"))
    _, _, backbone, parameters, returns, size, link, _ = (cell.strip() for cell in row.split("|"))
    assert (backbone, parameters) == (entry.config.backbone, f"{entry.parameters_m} M")
    assert returns == ("logits, code, descriptor" if entry.config.rerank else f"descriptor [B, {entry.descriptor_dim}]")
    assert size == "64 + " * entry.config.rerank + str(4 * entry.descriptor_dim)
    assert link == f"[download]({entry.urls[0]})"


def test_torch_alone_suffices(tmp_path):
    code = (
        LOAD.replace("FLAGS", 'backbone="vit-tiny", pretrained=False')
        + """
with torch.inference_mode():
    print(*(tuple(part.shape) for part in network(torch.rand(2, 3, 70, 56))))

from model import prepare_for_inference  # as README.md says

prepared = prepare_for_inference(network, torch.bfloat16)
print(*(tuple(part.shape) for part in prepared(torch.rand(2, 3, 70, 56))))
"""
    )
    result = run_python(code, cwd=tmp_path, without=NOT_TORCH, env={"PYTHONPATH": ""})
    assert result.stdout == 2 * "(2, 512) (2, 512) (2, 512)\n", result.stderr


def test_published_weights_where_torch_alone_is_installed(tmp_path):
    with torch.device("meta"):
        state = build("dinov2-base").state_dict()
    # One value an entry, so that the file is small.
    state = {
        name: torch.tensor(i, dtype=value.dtype).expand(value.shape) for i, (name, value) in enumerate(state.items())
    }
    cached = tmp_path / "home" / "hub" / "checkpoints" / "SelaVPRplusplus_base.pth"
    cached.parent.mkdir(parents=True)
    save_published(state, cached)
    code = (
        LOAD.replace("FLAGS", 'backbone="dinov2-base", hashing=False, rerank=False')
        + """
print(type(network).__name__, network.training, all((value == i).all().item() for i, value in
enumerate(network.state_dict().values())))
"""
    )
    result = run_python(
        code, cwd=tmp_path, without=NOT_TORCH, env={"TORCH_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    )
    assert result.stdout == "GeoLocalizationNet False True\n", result.stderr


@pytest.mark.parametrize("form", ["module", "package", "namespace"])
def test_another_package_named_model(tmp_path, form):
    if form == "module":
        (tmp_path / "model.py").touch()
    else:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / ("__init__.py" if form == "package" else "notes.txt")).touch()
    code = LOAD.replace("import torch", "import torch, model", 1).replace(
        "FLAGS", 'backbone="vit-tiny", pretrained=False'
    )
    result = run_python(code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert result.status == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: SelaVPR++") and "already imported: <module 'model'" in last, result.stderr
    assert form == "namespace" or str(tmp_path) in last
