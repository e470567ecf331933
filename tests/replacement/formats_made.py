"""Weights, norms, slow arithmetic and ways of spoiling files, for the tests of formats.

`slow` knows nothing of our layers: it goes through positions and features one by one.
"""

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from replacement.checkpoints.detect import read_layers
from replacement.norms import Norm
from replacement.precision import kept_type, with_tensors

D_MODEL, N_FEATURES, N_LAYERS = 6, 20, 4
EXACT = {"rtol": 0.0, "atol": 1e-11}
Gate = Callable[[list[float]], list[int]]


def noise(seed: int, *shape: int, scale: float = 0.6) -> Tensor:
    """Return normal numbers in float64."""
    source = torch.Generator().manual_seed(9000 + seed)
    return scale * torch.randn(shape, generator=source, dtype=torch.float64)


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Return random weights; rows of W_dec have norms from 0.3 to 3, no bias is 0."""
    decoder = noise(seed + 1, N_FEATURES, D_MODEL)
    norms = torch.logspace(-0.5, 0.5, N_FEATURES, dtype=torch.float64)
    return {
        "W_enc": noise(seed, D_MODEL, N_FEATURES),
        "W_dec": decoder * (norms.flip(0) / decoder.norm(dim=-1))[:, None],
        "b_enc": noise(seed + 2, N_FEATURES),
        "b_dec": noise(seed + 3, D_MODEL),
        "threshold": 0.2 + noise(seed + 4, N_FEATURES).abs(),
        "skip": noise(seed + 5, D_MODEL, D_MODEL),
    }


def norms(kind: str) -> list[Norm]:
    """Return the norms of a model: "rms", or "layer" with biases; every layer has its own."""
    return [
        Norm(
            gain=1.3 + noise(50 + number, D_MODEL, scale=0.3),
            bias=noise(70 + number, D_MODEL) if kind == "layer" else None,
            eps=1e-6,
            centred=kind == "layer",
        )
        for number in range(N_LAYERS)
    ]


def after(norm: Norm, x: Tensor) -> Tensor:
    """Return what a norm returns where `x` is what it has before its gain and bias."""
    y = x * norm.gain if norm.gain is not None else x
    return y if norm.bias is None else y + norm.bias


def inputs(seed: int = 0) -> Tensor:
    """Return [pos, d_model]."""
    return noise(300 + seed, 7, D_MODEL, scale=1.2)


def relu(pre: list[float]) -> list[int]:
    """Return which features are kept: the positive ones."""
    return [i for i, value in enumerate(pre) if value > 0]


def above(thresholds: Sequence[float]) -> Gate:
    """Return a gate that keeps what is above its threshold."""
    return lambda pre: [i for i, value in enumerate(pre) if value > thresholds[i]]


def top(k: int) -> Gate:
    """Return a gate that keeps the k largest where they are positive."""
    return lambda pre: [i for i in sorted(range(len(pre)), key=lambda i: -pre[i])[:k] if pre[i] > 0]


def slow(
    x: Tensor,
    encoder: Tensor,
    bias: Tensor,
    decoder: Tensor,
    gate: Gate,
    *,
    seen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return activations, and their sum of decoder rows; the gate looks at `pre · seen`."""
    activations = torch.zeros(len(x), len(bias), dtype=torch.float64)
    output = torch.zeros(len(x), decoder.shape[1], dtype=torch.float64)
    factors = [1.0] * len(bias) if seen is None else seen.tolist()
    for pos, vector in enumerate(x.tolist()):
        pre = [
            sum(v * float(w) for v, w in zip(vector, encoder[:, i], strict=True)) + float(bias[i])
            for i in range(len(bias))
        ]
        for i in gate([value * factor for value, factor in zip(pre, factors, strict=True)]):
            activations[pos, i] = pre[i]
            output[pos] += pre[i] * decoder[i]
    return activations, output


def assert_does(layer: Any, y: Tensor, activations: Tensor, output: Tensor) -> None:
    """Check a layer's features and its output; some features, not all, must be active."""
    active = layer.encode(y)
    found = torch.zeros_like(activations)
    found[active.pos, active.index] = active.activation
    torch.testing.assert_close(found, activations, **EXACT)
    torch.testing.assert_close(layer.decode(active, y), output, **EXACT)
    torch.testing.assert_close(layer.forward(y), output, **EXACT)
    assert len(y) < len(active) < activations.numel()


def read(folder: Path, **given: Any) -> tuple[str, list[Any]]:
    """Return what is in a folder, in float64."""
    kind, layers = read_layers(folder, **{"dtype": torch.float64, **given})
    return kind, layers


def only(folder: Path, **given: Any) -> tuple[int, Any]:
    """Return the only layer in a folder and its number."""
    _, layers = read(folder, **given)
    found = [(number, layer) for number, layer in enumerate(layers) if layer is not None]
    assert len(found) == 1
    return found[0]


def assert_kept_in_half(folder: Path, **given: Any) -> None:
    """Check that every matrix of a folder's layers is kept in bfloat16, and is what it was."""
    (_, whole), (_, half) = (
        read(folder, **{**given, "dtype": dtype}) for dtype in (torch.float32, torch.bfloat16)
    )
    pairs = [
        (one, two)
        for layers in zip(whole, half, strict=True)
        for one, two in zip(*map(_tensors, layers), strict=True)
    ]
    assert any(one.dim() > 1 for one, _ in pairs)
    for one, two in pairs:
        assert kept_type(two) == (torch.bfloat16 if one.dim() > 1 else one.dtype)
        torch.testing.assert_close(1 * two, one, rtol=0.02, atol=0.02)


def _tensors(layer: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with_tensors(layer, keep)
    return found


# --------------------------------------------------------------------------- what is spoiled


def _missing(tensors: dict[str, Any], name: str) -> None:
    del tensors[name]


def _short(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name][..., :-1].clone()


def _flat(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name].flatten()[:1].clone()


def _integer(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name].to(torch.int32)


def _nan(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = float("nan")


def _unknown(tensors: dict[str, Any], name: str) -> None:
    tensors["another"] = tensors[name].clone()


SPOILED: dict[str, tuple[Callable[[dict[str, Any], str], None], str]] = {
    "missing": (_missing, "missing tensors"),
    "short": (_short, "has shape"),
    "another shape": (_flat, "has shape"),
    "integer": (_integer, "weights are floating-point"),
    "NaN": (_nan, "NaN or infinite"),
    "unknown": (_unknown, "unexpected.*another"),
}


def every_spoiled(*names: str) -> Any:
    """Return a mark that runs a test with every way of spoiling every one of some tensors."""
    return pytest.mark.parametrize(
        ("spoil", "tensor"), [(spoil, name) for name in names for spoil in SPOILED]
    )


def assert_spoiled_is_refused(
    write: Callable[[dict[str, Any]], Path],
    tensors: dict[str, Any],
    spoil: str,
    tensor: str,
    **g: Any,
) -> None:
    """Check that a folder with one spoiled tensor gives an error that names its path."""
    change, message = SPOILED[spoil]
    change(tensors, tensor)
    folder = write(tensors)
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, **g)
    assert str(folder) in str(caught.value)


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def assert_broken_is_refused(path: Path, folder: Path, message: str, **given: Any) -> None:
    """Check that a file cut short anywhere, or a pickle in its place, is refused and not run."""
    raw, mark = path.read_bytes(), folder.parent / "was run"
    broken = [raw[:share] for share in (0, 5, len(raw) // 2, len(raw) - 1)]
    for content in (*broken, pickle.dumps({"W_enc": Bomb(mark)})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            read(folder, **given)
        assert str(path) in str(caught.value)
    assert not mark.exists()
