"""Declared types and shapes are checked while tests run, in some cases of each."""

import pytest
import torch
from jaxtyping import TypeCheckError

from benchmarks.report.agreement import pearson
from tests.conftest import CHECKED


def pearson_of_a_matrix() -> float | None:
    return pearson([torch.ones(2, 2)], [torch.ones(2, 2)])


def test_a_wrong_shape_is_an_error() -> None:
    with pytest.raises(TypeCheckError, match="scores"):
        pearson_of_a_matrix()


@pytest.mark.parametrize("case", range(3 * CHECKED))
def test_of_many_cases_every_third_is_checked(case: int, types_checked: bool) -> None:
    assert types_checked == (case % 3 == 0)
    if not types_checked:
        pearson_of_a_matrix()
