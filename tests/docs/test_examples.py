"""The examples of the README: from image files to descriptors."""

import re
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers.processes import ROOT, run_here, run_script

import model
from datasets.layouts import list_images

pytestmark = pytest.mark.slow
SIZE = ["--resize", 56, 56]
IMAGE = "my images/place 0/view 0.jpg"


@pytest.fixture
def images(tiny_benchmark, tmp_path):
    """A folder of images of a user: the tiny benchmark's database in subfolders, without positions in the names."""
    folder = tmp_path / "my images"
    for i, path in enumerate(list_images(tiny_benchmark / "tiny" / "images" / "test" / "database")):
        (folder / f"place {i // 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"place {i // 2}" / f"view {i % 2}.jpg")
    return folder


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("float", {"descriptor": (3, 512)}),
        ("hashing", {"code": (3, 512)}),
        ("two_branch", {"descriptor": (3, 512), "code": (3, 512)}),
    ],
)
def test_describe_image(images, checkpoints, tmp_path, mode, parts):
    first, same, other = images / "place 0/view 0.jpg", images / "place 0/view 1.jpg", images / "place 5/view 0.jpg"
    flags = ["--model", checkpoints[mode], *SIZE, "--output=features.npz"]
    result = run_script("examples.describe_image", first, same, other, *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    with np.load(tmp_path / "features.npz") as features:
        assert {name: features[name].shape for name in features if name != "paths"} == parts
        for name in parts:
            values = features[name].astype(float)
            assert values[0] @ values[1] > values[0] @ values[2]  # more similar to its own place
        if "descriptor" in parts:
            similarities = [
                float(text) for text in re.findall(r"cosine similarity (\S+)", result.stdout.replace(",", ""))
            ]
            assert similarities == pytest.approx(features["descriptor"][1:] @ features["descriptor"][0], abs=1e-3)
        if "code" in parts:
            bits = [int(text) for text in re.findall(r"(\d+) of 512 bits differ", result.stdout)]
            assert bits == [(features["code"][0] != code).sum() for code in features["code"][1:]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.jpg"], ["no.jpg", "no such file"]),
        ([IMAGE, "--model=resnet"], ["resnet", "SelaVPRplusplus_base"]),
        (["empty"], ["empty", "folder"]),
        ([IMAGE, "--resize", 50, 50], ["50 x 50", "14"]),
    ],
)
def test_bad_input(images, checkpoints, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    result = run_here(
        "examples.describe_image", *arguments[:1], "--model", checkpoints["float"], *SIZE, *arguments[1:], cwd=tmp_path
    )
    assert result.status == 2 and "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_the_demo_trains_on_corridors_for_real_photos_only(tmp_path):
    result = run_script("examples.demo", "--indoors", cwd=tmp_path)
    assert result.status == 2 and "--indoors needs --real_photos" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_python_examples_of_the_readme(images, checkpoints, tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    (tmp_path / "my_run").mkdir()
    shutil.copy(checkpoints["two_branch"], tmp_path / "my_run" / "best_model.pth")
    load = torch.hub.load

    def load_local(repository, name, *arguments):
        assert repository == "<owner>/SelaVPRplusplus"
        return load(str(ROOT), name, *arguments, source="local", **({} if arguments else {"pretrained": False}))

    shutil.copy(images / "place 0/view 0.jpg", tmp_path / "street.jpg")
    namespace: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(torch.hub, "load", load_local)
        patch.setitem(sys.modules, "selavprplusplus", model)
        exec(code, namespace)
    assert namespace["logits"].shape == namespace["code"].shape == (1, 512)
    assert set(namespace["code"].unique().tolist()) == {-1.0, 1.0}
    assert namespace["descriptor"].shape == (1, 2048)
    torch.testing.assert_close(namespace["descriptor"].norm(dim=1), torch.ones(1))
    assert namespace["fast"].dtype == torch.bfloat16
    assert namespace["model"].config.backbone == "vit-tiny"
