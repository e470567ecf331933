"""What reading layers adds to memory: nothing of their size where they can stay in their files."""

from pathlib import Path

import pytest
import torch

from benchmarks.speed.clock import memory_growth
from replacement.checkpoints import load_transcoders, save_transcoders
from replacement.checkpoints.files import all_finite
from replacement.layers import ReLU, Transcoder
from replacement.layers.active import active_from_gates
from replacement.precision import kept_in

WIDTH, FEATURES = 256, 20000
MATRIX_MB = 4 * WIDTH * FEATURES / 1e6


def large_folder(folder: Path, count: int, dtype: torch.dtype) -> Path:
    """Write `count` transcoders, of two matrices of 20 MB in float32 each, in `dtype`."""
    source = torch.Generator().manual_seed(0)
    read = torch.randn(FEATURES, WIDTH, generator=source)
    layer = Transcoder(read, -read, torch.zeros(FEATURES), torch.zeros(WIDTH), ReLU())
    save_transcoders([layer] * count, folder, dtype=dtype)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_in_the_type_of_their_files_stay_there(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = large_folder(tmp_path, 2, dtype)

    grown = memory_growth(lambda: load_transcoders(folder, dtype=dtype))

    assert grown is None or grown < 0.2 * MATRIX_MB


def test_converted_layers_are_read_one_at_a_time(tmp_path: Path) -> None:
    folder = large_folder(tmp_path, 4, torch.bfloat16)

    grown = memory_growth(lambda: load_transcoders(folder))

    kept = 4 * 2 * MATRIX_MB
    assert grown is None or 0.9 * kept < grown < 1.2 * kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_active_features_copy_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    (layer,) = load_transcoders(large_folder(tmp_path, 1, dtype), dtype=dtype)
    assert layer is not None
    gates = torch.zeros(4, FEATURES)
    gates[:, ::2000] = 1
    active = active_from_gates(gates, gates, dense=False)
    vectors = torch.ones(4, WIDTH)

    def products() -> object:
        return active.dots(layer.write, vectors), active.combine(layer.read, active.activation)

    products()  # kernels set up what they need
    grown = memory_growth(products)

    assert grown is None or grown < 0.2 * MATRIX_MB


def test_products_widen_a_part_at_a_time() -> None:
    weight = kept_in(torch.zeros(5 * FEATURES, WIDTH), torch.bfloat16)
    y = torch.ones(4, WIDTH)
    assert (y @ weight.T).shape == (4, 5 * FEATURES)

    grown = memory_growth(lambda: y @ weight.T)

    assert grown is None or grown < 0.4 * 5 * MATRIX_MB


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_finite_is_every_value(dtype: torch.dtype, value: float) -> None:
    tensor = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(tensor)
    assert all_finite(tensor[:0])

    tensor[1, 2] = value

    assert not all_finite(tensor)
    assert not all_finite(tensor.T)
