"""`pip install .`: the package selavprplusplus, which needs PyTorch and NumPy alone."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version

import pytest
import torch
from helpers.models import reference_model
from helpers.processes import NOT_TORCH, ROOT, run_python

from model.versions import VERSION


def pip(*arguments):
    """Runs pip without a network."""
    subprocess.run([sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-index", "-q"], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of what it is built from."""
    if tuple(map(int, version("setuptools").split(".")[:2])) < (77, 0):
        pytest.skip("pip downloads the setuptools that pyproject.toml asks for; here there is none")
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "model", folder / "model", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip("wheel", "--no-build-isolation", "-w", folder, folder)
    return folder / f"selavprplusplus-{VERSION}-py3-none-any.whl"


def test_it_contains_the_files_of_model_alone_and_needs_torch_and_numpy_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"selavprplusplus-{VERSION}.dist-info/"
        names = {name for name in archive.namelist() if not name.startswith(info)}
        metadata = archive.read(info + "METADATA").decode()
    files = {path.relative_to(ROOT / "model").as_posix() for path in (ROOT / "model").rglob("*.py")}
    assert names == {f"selavprplusplus/{name}" for name in files}
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert needed == ["Requires-Dist: torch>=2.6", "Requires-Dist: numpy>=1.26.4"]


def test_a_program_loads_a_checkpoint_with_it(wheel, tmp_path):
    pip("install", "--target", tmp_path / "installed", wheel)
    model = reference_model("vit-tiny", hashing=True, rerank=True)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    code = """
import importlib.metadata, torch, selavprplusplus
from selavprplusplus.versions import VERSION
network = selavprplusplus.load_any_model("model.pth")
images = torch.zeros(1, 3, 56, 70)
for model in (network, selavprplusplus.prepare_for_inference(network)):
    print(*(tuple(part.shape) for part in model(images)))
print(importlib.metadata.version("selavprplusplus") == VERSION, network.config)
"""
    hidden = (*NOT_TORCH, "model", "utils", "datasets")
    result = run_python(code, cwd=tmp_path, without=hidden, env={"PYTHONPATH": str(tmp_path / "installed")})
    assert result.stdout == 2 * "(1, 512) (1, 512) (1, 512)\n" + f"True {model.config}\n", result.stderr


def test_a_program_recognises_saves_and_opens_with_it_and_pillow_alone(wheel, tmp_path):
    pip("install", "--target", tmp_path / "installed", wheel)
    torch.save(reference_model("vit-tiny", hashing=True, rerank=True).state_dict(), tmp_path / "model.pth")
    code = """
import numpy as np
from PIL import Image
from selavprplusplus import PlaceRecognizer
frames = list(np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8))
Image.fromarray(frames[2]).save("frame.png")
recognizer = PlaceRecognizer("model.pth", resize=(56, 70))
recognizer.add(frames, names=["street", "square", "bridge"])
recognizer.save("index")
recognizer.remove(0)
recognizer.save("index")
opened = PlaceRecognizer.open("index")
print(len(opened), opened.search("frame.png", 1)[0][0].name, opened.search(frames) == recognizer.search(frames))
"""
    hidden = (*(name for name in NOT_TORCH if name != "PIL"), "model", "utils", "datasets")
    result = run_python(code, cwd=tmp_path, without=hidden, env={"PYTHONPATH": str(tmp_path / "installed")})
    assert result.stdout == "2 bridge True\n", result.stderr
