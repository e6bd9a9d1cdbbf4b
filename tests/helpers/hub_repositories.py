"""Local hub repositories with the traps of other projects' models, and what the model in them computes."""

import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

NETWORK = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    '''Descriptors [B, dim] that are not of length 1.'''

    def __init__(self, dim=32):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(48, dim, bias=False)
        self.linear.weight = nn.Parameter(torch.randn(dim, 48, generator=random))

    def forward(self, images):
        return self.linear(F.adaptive_avg_pool2d(images, 4).flatten(1))
"""
HUB_CONF = """
import torch
from model import Net  # of this repository
from models import unit
from utils.pooling import batch_mean

dependencies = ["torch"]

class Changed(torch.nn.Module):
    '''A Net with a trap in its output or its input.'''

    def __init__(self, output=lambda x, images: x, check=lambda h, w: True, dim=32):
        super().__init__()
        self.net, self.output, self.check = Net(dim), output, check

    def forward(self, images):
        from datasets.statistics import SCALE  # not before the first call
        import utils.late
        assert utils.late.NAME == "theirs", utils.late
        h, w = images.shape[-2:]
        if not self.check(h, w):
            raise AssertionError(f"Input image height {h} doesn't match")
        return self.output(self.net(images) * SCALE, images)

def plain(dim=32): return Changed(dim=dim)
def unit_length(): return Changed(lambda x, _: unit(x))
def with_tuple(): return Changed(lambda x, images: (images, x, None))
def parallel(): return torch.nn.DataParallel(Changed(lambda x, _: (x, x[:, None])))
def squeezed(): return Changed(lambda x, _: x.squeeze())
def batch_dependent(): return Changed(lambda x, _: x + 2 * batch_mean(x))
def fixed_size(): return Changed(check=lambda h, w: (h, w) == (224, 224))
def multiple_of_14(): return Changed(check=lambda h, w: h % 14 == w % 14 == 0)
def multiple_of_32(): return Changed(check=lambda h, w: h % 32 == w % 32 == 0)
def two_sizes(): return Changed(check=lambda h, w: h == w and h in (224, 320))
def no_size(): return Changed(check=lambda h, w: False)
def a_map(): return Changed(lambda x, _: x[:, :, None, None].expand(-1, -1, 3, 3))
def a_dict(): return Changed(lambda x, _: {"global": x, "local": x})
def nothing(): return Changed(lambda x, _: None)
def tuple_without(): return Changed(lambda x, _: (x[:1], x.long()))
def one_for_all(): return Changed(lambda x, _: x.mean(dim=0, keepdim=True))
def no_network(): return "a string"
def lacks_package():
    import a_package_that_nobody_has
def lacks_package_later():
    def late(x, _):
        import a_package_that_nobody_has
    return Changed(late)
def fails(size): raise KeyError(f"no {size} here")
def exits(): raise SystemExit(0)
def downloads(): return torch.hub.load_state_dict_from_url("http://127.0.0.1:9/weights.pth")
def first_use():
    '''Writes its weights beside its code when they are not there.'''
    from pathlib import Path
    file = Path(__file__).parent / "weights" / "net.pth"
    net = Net()
    if not file.exists():
        print("Downloading the weights")
        file.parent.mkdir()
        torch.save(net.state_dict(), file)
    net.load_state_dict(torch.load(file, weights_only=True))
    return net
def leaves_traces():
    import os, sys
    os.chdir("/")
    sys.path.append("/nowhere")
    return Changed()
"""
FILES = {
    "hubconf.py": HUB_CONF,
    "model.py": NETWORK,
    "models/__init__.py": "from models.lengths import unit",
    "models/lengths.py": "def unit(x): return x / x.norm(dim=1, keepdim=True)",
    "utils/pooling.py": "def batch_mean(x): return x.roll(1, 0)  # utils is a namespace package",
    "utils/late.py": "NAME = 'theirs'",
    "datasets/__init__.py": "",
    "datasets/statistics.py": "SCALE = 3.0",
}
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def write_repository(folder: Path, **changes: str) -> Path:
    """A repository with modules named as this project's. changes: {name of a file, without .py: text}."""
    for name, text in (FILES | {f"{name}.py": text for name, text in changes.items()}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def naive_descriptor(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The descriptor of length 1 that the model in the repository gives an image, one image at a time."""
    names: dict = {}
    exec(NETWORK, names)
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
    resized = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    with torch.no_grad():
        descriptor = names["Net"]()((resized - MEAN) / STD)[0].double().numpy()
    return descriptor / sum(x * x for x in descriptor) ** 0.5
