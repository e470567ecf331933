"""The catalogue: its rows, `circuits list`, the page in docs, names refused before a download.

`python -m tests.circuits.test_catalogue` writes the table of docs/catalogue.md anew.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from circuits import load
from circuits.catalogue import (
    ARGUMENTS,
    BUNDLED,
    PublishedModel,
    PublishedSet,
    matching,
    models,
    published,
    rows,
    table,
)
from circuits.cli import app
from circuits.loading_plan import loading_plan
from replacement.checkpoints import save_transcoders
from replacement.checkpoints.hub import source_of
from tests.circuits.folders import text_model
from tests.fake_hub import FakeHub, files_of, reachable
from tests.random_layers import random_transcoder

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "catalogue.md"
START, END = "<!-- sets -->\n", "<!-- /sets -->"
FORMATS = ("Dunefsky", "SAELens", "circuit-tracer", "Gemma Scope", "Llama Scope 1", "OpenMOSS")


def page_table() -> str:
    """Return the published sets as Markdown."""
    lines = ["| name | model | repository | replaces | features | size | format | |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows():
        if row["model"] in BUNDLED:
            continue
        where = "/".join(part for part in (row["repo"], row["folder"]) if part)
        known = "" if row["features"] is None else row["features"]
        about = "~" if row["size_computed"] else ""
        size = "" if row["size"] is None else f"{about}{row['size'] / 1e9:.1f} GB"
        said = [row["note"], row["choose"] and f"add the folder of a layer: `{row['choose']}`"]
        said += [row["refused"] and f"**not read**: {row['refused']}"]
        said += [f"also {', '.join(row['other_folders'])}" if row["other_folders"] else None]
        notes = "; ".join(one for one in said if one)
        lines.append(
            f"| `{row['name']}` | {row['model']} | {where} | {row['replaces']} | {known} | {size} "
            f"| {row['format'] or ''} | {notes} |"
        )
    return "\n".join(lines) + "\n"


def test_the_page_shows_the_rows() -> None:
    shown = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert shown == page_table(), "run python -m tests.circuits.test_catalogue"


@pytest.mark.parametrize("row", published().values(), ids=lambda row: row.name)
def test_rows_are_sound(row: PublishedSet) -> None:
    source = source_of(row.repo)
    assert source is not None and source.repo == row.repo
    assert row.model in models() and source_of(row.model) is not None
    assert row.format is None or row.format in FORMATS
    assert (row.replaces in ARGUMENTS) or row.refused is not None
    assert row.size is None or row.stored is None, "a size is stated or computed, not both"
    assert "/" not in row.name and "@" not in row.name and len(row.name) <= 28
    if row.format == "Gemma Scope":
        assert row.hooks is not None, "its files do not say what they were trained on"


def test_computed_sizes_count_every_write_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"tiny": PublishedModel("gpt2", 3, 10)}
    monkeypatch.setattr("circuits.catalogue.models", lambda: small)
    one = PublishedSet("a", "tiny", "a/b", "mlp", features=100, stored=2)
    assert one.bytes == 2 * (3 * 100 * 10) * 2
    across = PublishedSet("a", "tiny", "a/b", "cross-layer", features=100, stored=4)
    assert across.bytes == (3 + 3 + 2 + 1) * 100 * 10 * 4
    assert PublishedSet("a", "tiny", "a/b", "mlp", features=100).bytes is None
    assert PublishedSet("a", "tiny", "a/b", "mlp", features=100, stored=2, size=5).bytes == 5


def test_a_stated_size_and_the_shapes_agree() -> None:
    """The one row that has both: 160 GiB were measured, in numbers of two bytes."""
    row, model = published()["gemma-clt-2.5m"], models()["google/gemma-2-2b"]
    assert row.size is not None and row.features is not None
    slots = model.layers + model.layers * (model.layers + 1) // 2
    assert row.size == pytest.approx(slots * row.features * model.d_model * 2, rel=0.01)


NAMED = [
    ("gpt2", ["openai-community/gpt2"]),
    ("openai-community/gpt2", ["openai-community/gpt2"]),
    ("GPT2-small", ["openai-community/gpt2"]),
    ("meta-llama/Meta-Llama-3.1-8B", ["meta-llama/Llama-3.1-8B"]),
    ("llama-3.1-8b-instruct", ["meta-llama/Llama-3.1-8B-Instruct"]),
    ("gemma", ["google/gemma-2-2b"]),
    ("four-tasks", ["four-tasks"]),
    ("./models/gpt2/", ["openai-community/gpt2"]),
]


@pytest.mark.parametrize(("name", "found"), NAMED)
def test_models_are_found_by_the_names_people_use(name: str, found: list[str]) -> None:
    assert matching(name) == found


def test_the_table_fits_and_shows_every_row() -> None:
    text = table(rows())
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"  {row['name']} " in text for row in rows())
    assert "~1.8 GB" in text and "171.8 GB" in text and "not read: SAEs of what MLPs write" in text


def test_bundled_rows_say_what_is_in_the_files() -> None:
    shown = {row["name"]: row for row in rows("four-tasks")}
    assert set(shown) == {"transcoders", "lorsa", "attention-saes"}
    layers = load("four-tasks").weights.layers
    assert shown["transcoders"]["features"] == layers[0].mlp.read_bias.shape[0]
    folder = ROOT / "replacement" / "bundled" / "four-tasks" / "lorsa"
    assert shown["lorsa"]["size"] == sum(f.stat().st_size for f in folder.glob("*.safetensors"))


WITHOUT_TORCH = """
import json, sys
from typer.testing import CliRunner
from circuits.cli import app
result = CliRunner().invoke(app, ["list", "gpt2", "--json"])
heavy = {"torch", "transformers", "nnsight", "huggingface_hub"} & set(sys.modules)
print(json.dumps([sorted(heavy), result.exit_code, json.loads(result.stdout)]))
"""


def test_list_needs_no_torch_and_no_hub() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [[], 0, json.loads(json.dumps(rows("gpt2")))]


def test_a_bundled_model_without_layers_says_so() -> None:
    listed = CliRunner().invoke(app, ["list", "five-tasks"])
    assert listed.exit_code == 0 and "own neurons and heads" in listed.stdout


def test_list_prints_one_model_or_all() -> None:
    one = CliRunner().invoke(app, ["list", "gemma-2-2b"])
    assert one.exit_code == 0 and one.stdout.strip() == table(rows("google/gemma-2-2b")).strip()
    assert "gpt2" not in one.stdout
    every = CliRunner().invoke(app, ["list"])
    assert every.stdout.strip() == table(rows()).strip()
    wrong = CliRunner().invoke(app, ["list", "gpt-2"])
    assert wrong.exit_code == 2 and "Nearest: 'gpt2'" in wrong.stderr


# ---------------------------------------------------------------- names of sets, given to load


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with reachable(tmp_path / "cache", monkeypatch) as found:
        layers = [random_transcoder("topk", seed=n, dtype=torch.float32) for n in range(2)]
        save_transcoders(layers, tmp_path / "set")
        found.publish("org/set", files_of(tmp_path / "set", "8x/"))
        found.publish("org/set", files_of(tmp_path / "set", "32x/"), "v2")
        known = {"tiny": PublishedModel("gpt2", 2, 8), "wide": PublishedModel("gpt2", 2, 9)}
        sets = {
            "tiny-transcoders": {"model": "tiny", "folder": "8x"},
            "wide-transcoders": {"model": "wide", "folder": "8x"},
        }
        catalogue = {
            name: PublishedSet(name, row["model"], "org/set", "mlp", folder=row["folder"])
            for name, row in sets.items()
        }
        for module in ("circuits.catalogue", "circuits.reading"):
            monkeypatch.setattr(f"{module}.models", lambda: known)
            monkeypatch.setattr(f"{module}.published", lambda: catalogue)
        yield found


@pytest.mark.parametrize(
    "name",
    [
        "tiny-transcoders",
        "org/set/8x",
        "tiny-transcoders/32x@v2",
        "org/set/32x@v2",
        "hf://org/set/8x",
    ],
)
def test_short_names_and_hub_names_load(name: str, hub: FakeHub, tmp_path: Path) -> None:
    model = load(text_model(), mlp=name)
    own = load(text_model(), mlp=tmp_path / "set")
    assert torch.equal(model.weights.layers[1].mlp.read_bias, own.weights.layers[1].mlp.read_bias)
    assert model.read_as["mlp"] == name
    assert hub.sent() == [
        f"{'32x' if 'v2' in name else '8x'}/{file}" for file in files_of(tmp_path / "set")
    ]
    mixed = load(text_model(), mlp=[None, name])
    assert model.weights.layers[1].mlp.read_bias.equal(mixed.weights.layers[1].mlp.read_bias)
    assert mixed.read_as["mlp"] == ["neurons", name]


def test_a_set_of_another_model_is_refused_before_it_is_fetched(hub: FakeHub) -> None:
    for call in (load, loading_plan):
        with pytest.raises(ValueError, match=r"layers of wide \(gpt2, 2 layers, vectors of 9\)"):
            call(text_model(), mlp="wide-transcoders")
    with pytest.raises(ValueError, match=r"replace mlp. Give load\(mlp='tiny-transcoders'\)"):
        load(text_model(), attention="tiny-transcoders")
    assert hub.asked == []


def test_what_looks_like_a_path_is_never_sent_to_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("./org/set", "runs/mine", "/org/set", "~/none/set", "a\\b", Path("org/set")):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load(text_model(), mlp=name)
    with pytest.raises(ValueError, match="no layers of that name"):
        load(text_model(), mlp="transcoder")
    assert hub.asked == []


def test_a_folder_that_is_there_comes_before_a_hub_name(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "set").rename(tmp_path / "org" / "set")
    assert load(text_model(), mlp="org/set").read_as["mlp"] == "set"
    assert hub.asked == []


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START)
    PAGE.write_text(before + START + page_table() + END + rest.split(END)[1], encoding="utf-8")
