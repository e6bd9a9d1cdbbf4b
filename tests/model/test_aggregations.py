"""The rules of docs/extending.md, for every aggregation in the registry."""

import pytest
from helpers.aggregations import assert_distinct_entries, assert_unit_vectors

from model import AGGREGATIONS


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_model_with_it_gives_unit_vectors_in_float32(shallow_vit, name):
    assert_unit_vectors(name)


def test_their_entries_have_distinct_names():
    """Checkpoints are recognised by them, and must not load into another aggregation."""
    assert_distinct_entries()
