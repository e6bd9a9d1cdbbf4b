"""The files of examples/integrations, each driven as the program drives it that it is for.

rclpy and hloc are used where they are installed (`pip install ros-rclpy ros-rmw-fastrtps-cpp ros-sensor-msgs` gives the
former; the latter is not on PyPI). Elsewhere stand-ins below take their places: the calls that the files make, and what
these programs do with the results.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.models import MODES, build, filled
from helpers.processes import ROOT, run_python, run_script
from PIL import Image

from model import PlaceRecognizer

pytestmark = pytest.mark.slow

FILES = ROOT / "examples" / "integrations"
SIZE = (56, 70)

HLOC = {  # stand-ins for hloc 1.5, which is under the Apache License 2.0
    "__init__.py": "",
    "extractors/__init__.py": "",
    "utils/__init__.py": "",
    "utils/base_model.py": """
import inspect
from abc import ABCMeta, abstractmethod
from copy import copy
from torch import nn

class BaseModel(nn.Module, metaclass=ABCMeta):
    default_conf = {}
    required_inputs = []

    def __init__(self, conf):
        super().__init__()
        self.conf = conf = {**self.default_conf, **conf}
        self.required_inputs = copy(self.required_inputs)
        self._init(conf)

    def forward(self, data):
        for key in self.required_inputs:
            assert key in data, f"Missing key {key} in data"
        return self._forward(data)

    @abstractmethod
    def _init(self, conf):
        raise NotImplementedError

    @abstractmethod
    def _forward(self, data):
        raise NotImplementedError

def dynamic_load(root, model):
    path = f"{root.__name__}.{model}"
    module = __import__(path, fromlist=[""])
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == path]
    (found,) = [c for c in classes if issubclass(c, BaseModel)]
    return found
""",
    "extract_features.py": """
from pathlib import Path
import h5py, numpy as np, torch
from PIL import Image
from . import extractors
from .utils.base_model import dynamic_load

@torch.no_grad()
def main(conf, image_dir, export_dir, as_half=True):
    assert conf["preprocessing"] == {}, "images of another size, or grey ones, are not imitated"
    model = dynamic_load(extractors, conf["model"]["name"])(conf["model"]).eval().to("cpu")
    path = Path(export_dir, conf["output"] + ".h5")
    for name in sorted(image.name for image in Path(image_dir).iterdir()):
        pixels = np.asarray(Image.open(Path(image_dir, name))).astype(np.float32).transpose((2, 0, 1)) / 255.0
        pred = {k: v[0].cpu().numpy() for k, v in model({"image": torch.from_numpy(pixels)[None]}).items()}
        with h5py.File(str(path), "a", libver="latest") as file:
            group = file.create_group(name)
            for key, value in pred.items():
                group.create_dataset(key, data=value.astype(np.float16) if as_half else value)
    return path
""",
}

ROS = {  # one process, in which topics are lists of callbacks
    "rclpy/__init__.py": """
import sys
topics, waiting = {}, []

def init():
    pass

def shutdown():
    pass

def spin_once(node, timeout_sec):
    if waiting:
        callback, message = waiting.pop(0)
        callback(message)
""",
    "rclpy/node.py": """
import rclpy, sys
from types import SimpleNamespace

class Node:
    def __init__(self, name):
        words = sys.argv[1:]
        self.given = dict(words[i + 1].split(":=") for i, word in enumerate(words) if word == "-p")

    def declare_parameter(self, name, value):
        return SimpleNamespace(value=type(value)(self.given.get(name, value)))

    def create_publisher(self, kind, topic, depth):
        def publish(message):
            assert isinstance(message, kind)
            rclpy.waiting += [(callback, message) for callback in rclpy.topics.get(topic, [])]
        return SimpleNamespace(publish=publish, get_subscription_count=lambda: len(rclpy.topics.get(topic, [])))

    def create_subscription(self, kind, topic, callback, depth):
        rclpy.topics.setdefault(topic, []).append(callback)

    def get_logger(self):
        return SimpleNamespace(error=lambda text: print(text, file=sys.stderr))
""",
    "rclpy/qos.py": """
from enum import Enum
from typing import NamedTuple
ReliabilityPolicy = Enum("ReliabilityPolicy", ["RELIABLE", "BEST_EFFORT"])

class QoSProfile(NamedTuple):
    depth: int
    reliability: ReliabilityPolicy
""",
    "sensor_msgs/msg.py": """
from types import SimpleNamespace

class Image(SimpleNamespace):
    def __init__(self):
        self.header = SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0))
""",
    "std_msgs/msg.py": """
from types import SimpleNamespace

class String(SimpleNamespace):
    pass
""",
}


def photo(seed):
    """A made-up photo [90, 120, 3] uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return coarse.repeat(10, axis=0).repeat(10, axis=1)


@pytest.fixture
def program(tmp_path):
    """program(code, package, files): runs Python code in a folder with the installed package, `weights.pth`, and unless
    it is installed another package, of these files.
    """
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "selavprplusplus").symlink_to(ROOT / "model")
    save_weights(tmp_path)

    def run(code, package="", files=None):
        is_installed = package and run_python(f"import {package}", cwd=tmp_path).status == 0
        for name, text in ({} if is_installed else files or {}).items():
            (tmp_path / "installed" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "installed" / name).write_text(text)
        env = {"PYTHONPATH": str(tmp_path / "installed"), "SELAVPR_MODEL": "weights.pth", "ROS_DOMAIN_ID": "77"}
        return run_python(code, cwd=tmp_path, env=env)

    return run


def save_weights(folder, mode="two_branch"):
    """A checkpoint that states the size of its images; returns its recogniser."""
    model = filled(build("vit-nano", **MODES[mode]))
    sizes = {"resize": SIZE, "antialias": True}
    torch.save({"model_state_dict": model.state_dict(), "image_config": sizes}, folder / "weights.pth")
    return PlaceRecognizer(folder / "weights.pth")


@pytest.mark.parametrize("path", sorted(FILES.glob("*.py")), ids=lambda path: path.stem)
def test_a_drop_in_is_short(path):
    assert len(path.read_text().splitlines()) < 60


def test_hloc_extracts_global_descriptors(program, tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.fromarray(photo(i)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "extractors").mkdir()
    shutil.copy(FILES / "hloc_extractor.py", tmp_path / "extractors" / "selavpr.py")
    code = """
from pathlib import Path
from hloc import extract_features, extractors

extractors.__path__.append("extractors")  # in place of a copy in hloc's own folder
model = {"name": "selavpr", "model": "weights.pth"}
conf = {"output": "global-feats-selavpr", "model": model, "preprocessing": {}}
extract_features.main(conf, Path("images"), Path("."), as_half=False)
"""
    result = program(code, package="hloc", files={f"hloc/{name}": text for name, text in HLOC.items()})
    assert result.status == 0, result.stderr
    expected = PlaceRecognizer(tmp_path / "weights.pth").describe([photo(i) for i in range(3)]).descriptor
    with h5py.File(tmp_path / "global-feats-selavpr.h5") as features:
        found = [features[f"{i}.png"]["global_descriptor"].__array__() for i in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rtabmap_extracts_a_descriptor_of_an_opencv_image(program, tmp_path):
    """RTAB-Map's PyDescriptor puts the file's folder on sys.path, imports it by its name, calls init(dim), and for each
    image extract(image); of the result it reads the float32 rows.
    """
    np.save(tmp_path / "image.npy", photo(0)[:, :, ::-1])  # BGR
    code = f"""
import sys
import numpy as np
sys.path.append({str(FILES)!r})
module = __import__("rtabmap_descriptor")
try:
    module.init(4096)
except ValueError as error:
    print(error)
module.init(512)
image = np.load("image.npy")
np.save("found.npy", np.concatenate([module.extract(image), module.extract(image[:, :, 0])]))
"""
    result = program(code)
    assert result.stdout == "PyDescriptor/Dim is 4096. The model's descriptors have 512 values.\n", result.stderr
    images = [photo(0), np.ascontiguousarray(photo(0)[:, :, 2])]
    found = np.load(tmp_path / "found.npy")
    assert found.dtype == np.float32 and found.shape == (2, 512)
    np.testing.assert_allclose(found, PlaceRecognizer(tmp_path / "weights.pth").describe(images).descriptor, atol=1e-6)


def test_a_model_without_descriptors_is_refused_where_they_are_wanted(program, tmp_path):
    save_weights(tmp_path, "hashing")
    code = f"import sys; sys.path.append({str(FILES)!r}); import rtabmap_descriptor; rtabmap_descriptor.init(512)"
    assert "The model gives codes only" in program(code).stderr


@pytest.mark.parametrize(("suppress", "count"), [(0, 2), (25, 1)])
def test_a_ros_node_publishes_loops(program, tmp_path, suppress, count):
    """Another node sends 12 images, of which the last two, in other encodings, show the places of the first two."""
    for i in range(12):
        np.save(tmp_path / f"{i}.npy", photo(i % 10))
    code = f"""
import sys, time
sys.path.append({str(FILES)!r})
import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import String
import ros_node

rclpy.init()
node, other = ros_node.LoopNode(), Node("camera")
found = []
other.create_subscription(String, "loop", lambda message: found.append(message.data), 10)
camera = other.create_publisher(Image, "image", 10)
deadline = time.monotonic() + 60

def spin(until):
    while not until() and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.05)
        rclpy.spin_once(other, timeout_sec=0.05)

def send(i, encoding, rows):
    message = Image()
    message.header.stamp.sec, message.header.stamp.nanosec = i, 500_000_000
    message.height, message.width, message.step = len(rows), 120, rows.shape[1]
    message.encoding, message.data = encoding, rows.tobytes()
    camera.publish(message)

spin(lambda: camera.get_subscription_count() == 1)
for i in range(12):
    pixels = np.load(f"{{i}}.npy")
    encoding = "bgr8" if i == 11 else "rgb8"
    rows = pixels[:, :, ::-1 if i == 11 else 1].reshape(90, 360)
    if i == 10:
        rows = np.pad(rows, ((0, 0), (0, 24)))  # rows of a camera may be padded
    send(i, encoding, rows)
    spin(lambda: len(node.times) == i + 1)
send(12, "32FC1", rows)
end = time.monotonic() + 1
spin(lambda: len(found) == {count} and time.monotonic() > end)
print(*found, sep="\\n")
rclpy.shutdown()
"""
    words = [
        "--ros-args",
        "-p",
        "model:=weights.pth",
        "-p",
        "max_distance:=0.001",
        "-p",
        "min_gap:=5",
        "-p",
        f"suppress:={suppress}",
    ]
    result = program(f"import sys; sys.argv[1:] = {words}{code}", package="rclpy", files=ROS)
    assert result.status == 0 and "Images of 32FC1 are not read. Expected rgb8, bgr8, mono8." in result.stderr, result
    loops = list(map(json.loads, result.stdout.splitlines()))
    assert [(loop["stamp"], loop["earlier_stamp"]) for loop in loops] == [(10.5, 0.5), (11.5, 1.5)][:count]


@pytest.mark.parametrize("names", ["plain", "positions"])
def test_loops_of_a_folder_are_printed_and_drawn(tmp_path, names):
    save_weights(tmp_path)
    (tmp_path / "drive").mkdir()
    for i in range(24):
        name = f"{i}.png" if names == "plain" else f"@{500000 + i}@{4000000 + i % 12}@{i}@.png"
        Image.fromarray(photo(i % 12)).save(tmp_path / "drive" / name)
    flags = "--model=weights.pth", "--max_distance=0.001", "--min_gap=12", "--suppress=6", "--output=loops.png"
    result = run_script("examples.integrations.find_loops", "drive", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    *loops, summary = result.stdout.splitlines()
    expected = [f"{i}.png {i - 12}.png 0.000" for i in (12, 18)]
    assert summary == "2 loops in 24 frames" and (names != "plain" or loops == expected)
    with Image.open(tmp_path / "loops.png") as image:
        assert image.size == (1200, 1200) and (255, 0, 0) in {colour[:3] for _, colour in image.getcolors(1 << 20)}
