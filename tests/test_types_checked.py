"""Declared types and shapes are checked while tests run, in some cases of each."""

import pytest
import torch
from jaxtyping import TypeCheckError

from benchmarks.scores import kl_divergence
from tests.conftest import CHECKED


def of_wrong_shape() -> float:
    """A divergence of tables with one dimension too many, which its code would not notice."""
    return kl_divergence(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))


def test_a_wrong_shape_is_an_error() -> None:
    with pytest.raises(TypeCheckError, match="whole"):
        of_wrong_shape()


@pytest.mark.parametrize("case", range(3 * CHECKED))
def test_of_many_cases_every_third_is_checked(case: int, types_checked: bool) -> None:
    assert types_checked == (case % 3 == 0)
    if not types_checked:
        assert of_wrong_shape() == 0
