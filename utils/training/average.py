"""An exponential moving average of the weights that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a model's trainable parameters and of the BatchNorm statistics beside them.

    It starts as a copy of the weights. Update t, counted from 1, uses the smaller one of `decay` and
    (1 + t) / (10 + t), so that the untrained start fades quickly. The counters of BatchNorm are copied. What is frozen
    is not kept twice. Attributes: entries, by the names of the model's state dict; updates, how many there were.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.current = _training_entries(model)
        self.entries = {name: tensor.clone() for name, tensor in self.current.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Adds the model's current weights to the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        floats = [name for name, tensor in self.entries.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [self.entries[name] for name in floats], [self.current[name] for name in floats], 1 - decay
        )
        for name in self.entries.keys() - set(floats):
            self.entries[name].copy_(self.current[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A block in which the model has the averaged weights. Afterwards it has its own again, bit for bit."""
        saved = {name: tensor.clone() for name, tensor in self.current.items()}
        _copy(self.entries, self.current)
        try:
            yield
        finally:
            _copy(saved, self.current)

    def state_dict(self) -> dict[str, Any]:
        """What load_state_dict restores."""
        return {"updates": self.updates, "entries": self.entries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the average of the same model."""
        self.updates = state["updates"]
        _copy(state["entries"], self.entries)


def _training_entries(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters, and the buffers of the modules that have some: the model's own tensors, by name."""
    entries: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        parameters = {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}
        tensors = parameters | dict(module.named_buffers(recurse=False)) if parameters else {}
        entries |= {f"{prefix}.{name}" if prefix else name: tensor.detach() for name, tensor in tensors.items()}
    return entries


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
