"""Seeded trials of faults, and the tally of those that the code did not survive."""

import os
import random
from collections.abc import Callable

import pytest

SEED = int(os.environ.get("SEED") or 0)
TRIALS = int(os.environ.get("TRIALS") or 20)


def trials(count: int = TRIALS, *, fixed: int = 0) -> pytest.MarkDecorator:
    """Parametrises a test with `rng`: `fixed` generators that are always the same and run in every test run, then
    `count` that depend on SEED and run where the marker `faults` is selected.
    """
    params = [pytest.param(f"fixed {i}", id=f"fixed{i}") for i in range(fixed)]
    params += [pytest.param(f"{SEED} {i}", id=str(i), marks=pytest.mark.faults) for i in range(count)]
    return pytest.mark.parametrize("rng", params, indirect=True)


def log_uniform(rng: random.Random, low: float, high: float) -> int:
    """A number from low to high whose order of magnitude is uniform."""
    return round(low * (high / low) ** rng.random())


class Tally:
    """Counts the faults of a test, and collects what went wrong after them, for the table at the end."""

    def __init__(self, record_property: Callable[[str, object], None]) -> None:
        self.record_property = record_property
        self.tries = 0
        self.defects: list[tuple[str, str]] = []

    def add(self, fault: str, problems: list[str], count: int = 1) -> None:
        """`count` faults, described so that they can be repeated, and the problems after: none if the code survived."""
        self.tries += count
        if problems:
            self.defects.append(("; ".join(problems), fault))

    def finish(self) -> None:
        """Fails the test if there were defects."""
        self.record_property("tries", self.tries)
        self.record_property("defects", self.defects)
        if self.defects:
            lines = [f"{problem}\n    after: {fault}" for problem, fault in self.defects[:20]]
            pytest.fail("\n".join([f"{len(self.defects)} of {self.tries}", *lines]), pytrace=False)
