"""`circuits train`: layers from a file of prompts, what they reach, and what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuits import load
from circuits.cli import app
from circuits.training import KINDS, prompts_of, train_layers
from replacement.checkpoints import kind_of

TINY = {"n_features": 16, "k": 4, "steps": 3, "warm_up": 1, "batch_size": 8}
PROMPTS = [
    f"Then, Alice and Tom were thinking of lamp {one}" for one in ("key", "war", "ring")
] * 14


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_trained_saved_and_read_again(kind: str, tmp_path: Path) -> None:
    model = load("four-tasks", mlp="neurons", attention="heads")
    folder = tmp_path / "layers"
    trained = train_layers(model, PROMPTS, kind, folder, **TINY)
    assert kind_of(folder) == kind
    assert len(trained.layers) == 4
    assert trained.model.kl > 0
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["kind"] == kind
    part = "mlp" if kind == "transcoders" else "attention"
    other = {"mlp": "neurons", "attention": "heads", part: str(folder)}
    assert load("four-tasks", **other).run(PROMPTS[0]).errors


def test_a_finished_run_is_not_taken_for_another_ones(tmp_path: Path) -> None:
    """The checkpoint belongs to the model, the prompts and how they are cut."""
    model = load("four-tasks", mlp="neurons", attention="heads")
    folder = tmp_path / "layers"
    first = train_layers(model, PROMPTS, "transcoders", folder, **TINY)
    again = train_layers(model, PROMPTS, "transcoders", folder, **TINY)
    other = train_layers(model, PROMPTS[1:], "transcoders", folder, **TINY)
    shorter = train_layers(model, PROMPTS, "transcoders", folder, longest=6, **TINY)
    assert again.layers == first.layers
    assert other.layers != first.layers
    assert shorter.layers != first.layers
    assert len(list((tmp_path / "layers-training").iterdir())) == 3


@pytest.mark.parametrize("there", ["model", "lorsa"])
def test_what_is_something_else_is_not_overwritten(there: str, tmp_path: Path) -> None:
    model = load("four-tasks", mlp="neurons", attention="heads")
    folder = tmp_path / "layers"
    if there == "model":
        model.hf_model.save_pretrained(folder)
    else:
        train_layers(model, PROMPTS, there, folder, **TINY)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="which transcoders would overwrite"):
        train_layers(model, PROMPTS, "transcoders", folder, **TINY)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "probes"}, "one of transcoders, lorsa"),
        ({"prompts": PROMPTS[:5]}, "at least 20"),
        ({"steps": 0}, "1 or more"),
        ({"learning_rate": -1.0}, "above 0"),
        ({"sparsity": 3}, "sparsity"),
        ({"prompts": [*PROMPTS[:19], "key", *PROMPTS[:19], "key"], "longest": 2}, "three tokens"),
    ],
    ids=str,
)
def test_bad_requests_fail_before_training(changes: dict, message: str, tmp_path: Path) -> None:
    model = load("four-tasks", mlp="neurons", attention="heads")
    given = {"prompts": PROMPTS, "kind": "lorsa", "folder": tmp_path / "layers", **TINY, **changes}
    with pytest.raises(ValueError, match=message):
        train_layers(model, **given)
    assert not (tmp_path / "layers").exists()
    assert not (tmp_path / "layers-training").exists()


def test_prompts_are_lines_or_objects(tmp_path: Path) -> None:
    lines, objects = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("one\n\ntwo\n")
    objects.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    assert prompts_of(lines) == prompts_of(objects) == ["one", "two"]
    objects.write_text('{"text": "one"}\n')
    with pytest.raises(ValueError, match='a "prompt"'):
        prompts_of(objects)
    with pytest.raises(FileNotFoundError, match="one prompt a line"):
        prompts_of(tmp_path / "none.txt")


def test_the_command(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(PROMPTS))
    folder = tmp_path / "layers"
    command = ["train", "four-tasks", str(texts), "-o", str(folder), "--kind", "transcoders"]
    small = ["--features", "16", "--k", "4", "--steps", "2", "--batch", "8"]
    done = CliRunner().invoke(app, [*command, *small])
    assert done.exit_code == 0, done.output
    assert "variance explained" in done.output
    assert CliRunner().invoke(app, [*command, *small, "--kind", "lorsa"]).exit_code == 2
