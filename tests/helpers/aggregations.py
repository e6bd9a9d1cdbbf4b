"""The rules of docs/extending.md that every aggregation in the registry obeys."""

import torch
from helpers.models import build

from model import AGGREGATIONS


def entries(name):
    """The names of an aggregation's state-dict entries."""
    return set(build("vit-tiny", name).aggregation.state_dict())


def assert_unit_vectors(name):
    """A model with the aggregation gives unit vectors in float32, and each parameter of it a gradient."""
    model = build("vit-tiny", name)
    torch.nn.init.normal_(model.backbone.pos_embed, std=1.0)
    images = torch.rand(3, 3, 126, 154, generator=torch.Generator().manual_seed(0))
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            descriptors = model(images)
        assert descriptors.shape == (3, model.descriptor_dim) and descriptors.dtype == torch.float32
        torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(3))
    descriptors.sum().backward()
    for parameter in model.aggregation.parameters():
        assert parameter.grad is not None


def assert_distinct_entries():
    """No two aggregations share the name of an entry: checkpoints are recognised by them."""
    names = [entries(name) for name in AGGREGATIONS]
    assert all(names) and len(set().union(*names)) == sum(map(len, names))
