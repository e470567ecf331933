"""circuit-tracer's .pt files: opened, and nothing of them run."""

import pickle
from pathlib import Path

import pandas as pd
import pytest
import torch

from circuits import read
from tests.errors.mistakes import Mistake, assert_explained, each

MADE = Path(__file__).parent.parent / "graphs" / "made_by_others" / "circuit_tracer"


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("sprung"),))


def test_pt_and_json_are_the_same_circuit() -> None:
    """Both made by the package itself (made_by_others/make.py)."""
    with pytest.warns(UserWarning, match="one of 2 logits"):
        one, other = read(MADE.with_suffix(".pt")), read(MADE.with_suffix(".json"))
    drop = ["token", "label"]
    pd.testing.assert_frame_equal(
        one.nodes.drop(columns=drop), other.nodes.drop(columns=drop), rtol=1e-5
    )
    key = ["source", "target"]
    pd.testing.assert_frame_equal(
        one.edges.sort_values(key, ignore_index=True),
        other.edges.sort_values(key, ignore_index=True),
        rtol=1e-5,
    )
    assert one.meta["tokens"] == ["[5]", "[9]", "[2]"]


def saved(folder: Path, content: object) -> Path:
    path = folder / "a.pt"
    torch.save(content, path)
    return path


def test_nothing_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, {"cfg": Trap()})
    with pytest.raises(ValueError, match="nothing of it was run"):
        read(path)
    assert not Path("sprung").exists()
    torch.load(path, weights_only=False)
    assert Path("sprung").exists(), "control: the trap works"


FILES = [
    Mistake(
        "a .pt that is none",
        lambda folder: read(_written(folder / "a.pt", b"not a zip")),
        ValueError,
        ("cannot be opened as a circuit-tracer graph", "Graph.to_pt"),
    ),
    Mistake(
        "a .pt of something else",
        lambda folder: read(saved(folder, {"weights": torch.zeros(2)})),
        ValueError,
        ("cannot be opened as a circuit-tracer graph", "selected_features"),
    ),
    Mistake(
        "a plain pickle",
        lambda folder: read(_written(folder / "a.pt", pickle.dumps({"a": 1}))),
        ValueError,
        ("cannot be opened as a circuit-tracer graph",),
    ),
]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@each(FILES)
def test_files(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)
