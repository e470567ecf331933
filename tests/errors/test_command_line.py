"""The same paragraphs at the shell: on stderr, exit code 2, and nothing written."""

from pathlib import Path

from typer.testing import CliRunner

from circuits import build_features
from circuits.cli import app
from graphs.example import worked_example
from graphs.files import save
from tests.circuits.folders import PROMPT
from tests.errors.mistakes import Mistake, assert_explained, each, made_file
from tests.errors.models_given import model
from tests.graphs import samples


class Refused(Exception):
    """What a command wrote to stderr before it ended with 2."""


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(folder: Path, *words: str) -> None:
    before = contents(folder)
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert contents(folder) == before
    raise Refused(result.stderr.removesuffix("\n")) from None


def trace(folder: Path, model: str, *options: str) -> None:
    command(folder, "trace", model, PROMPT, "--explain", " Mary", *options)


def many(folder: Path, text: str, *options: str) -> None:
    """Trace a file of prompts."""
    command(folder, "trace", "four-tasks", str(made_file(folder / "a.jsonl", text)), *options)


def saved(folder: Path, size: int = 14) -> str:
    """A circuit of so many tokens, of a model without a name."""
    graph = worked_example() if size == 1 else samples.circuit_like()
    return str(save(graph.noted(model="mine", layers={}), folder / f"{size}.circuit"))


def cards(folder: Path) -> str:
    """A folder of feature cards."""
    path = folder / "cards"
    build_features(model(), ["When Mary"], path, tokens=0, progress=False)
    return str(path)


LINE = '{"prompt": "Mary went", "explain": " to"}'


def made_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


COMMANDS = [
    Mistake(
        "trace a misspelt model",
        lambda folder: trace(folder, "four-task"),
        Refused,
        ("circuits: load('four-task')", "Did you mean 'four-tasks'?"),
    ),
    Mistake(
        "trace on an unknown device",
        lambda folder: trace(folder, "four-tasks", "--device", "toaster"),
        Refused,
        ("circuits: load(device='toaster')", '"cpu" always works'),
    ),
    Mistake(
        "trace in an unknown type",
        lambda folder: trace(folder, "four-tasks", "--dtype", "float16"),
        Refused,
        ("circuits: load(dtype='float16')", "float32 or float64"),
    ),
    Mistake(
        "trace to a picture that is not written",
        lambda folder: trace(folder, "four-tasks", "-o", str(folder / "ioi.jpg")),
        Refused,
        ("ioi.jpg", "Endings known", ".circuit"),
    ),
    Mistake(
        "trace into a folder that is not there",
        lambda folder: trace(folder, "four-tasks", "-o", str(folder / "none" / "ioi.svg")),
        Refused,
        ("no folder", "mkdir -p"),
    ),
    Mistake(
        "trace against a shorter prompt",
        lambda folder: trace(folder, "four-tasks", "--against", "Mary gave a drink to"),
        Refused,
        ("circuits: against=: a run of 6 tokens", "of the same length"),
    ),
    Mistake(
        "trace nothing of a prompt",
        lambda folder: command(folder, "trace", "four-tasks", PROMPT),
        Refused,
        ("Missing option '--explain'", '" Mary"'),
    ),
    Mistake(
        "trace with unknown edges",
        lambda folder: trace(folder, "four-tasks", "--edges", "some"),
        Refused,
        ("edges='some'", '"flow", "direct" or "both"'),
    ),
    Mistake(
        "trace a file of prompts that is not there",
        lambda folder: command(folder, "trace", "four-tasks", str(folder / "none.jsonl")),
        Refused,
        ("none.jsonl: no such file", 'A line is for instance {"prompt"'),
    ),
    Mistake(
        "trace an empty file of prompts",
        lambda folder: many(folder, "\n"),
        Refused,
        ("holds no prompts", "A line is for instance"),
    ),
    Mistake(
        "trace a file that is no text",
        lambda folder: command(
            folder, "trace", "four-tasks", str(made_bytes(folder / "a.jsonl", b"\xff\xfe"))
        ),
        Refused,
        ("not UTF-8 text", "A line is for instance"),
    ),
    Mistake(
        "trace a file of prompts to nowhere",
        lambda folder: many(folder, LINE),
        Refused,
        ("many circuits are written", "-o FOLDER"),
    ),
    Mistake(
        "trace a file of prompts to two folders",
        lambda folder: many(folder, LINE, "-o", str(folder / "one"), "-o", str(folder / "two")),
        Refused,
        ("Give one folder", "-o FOLDER"),
    ),
    Mistake(
        "trace a file of prompts into a file",
        lambda folder: many(folder, LINE, "-o", str(folder / "a.jsonl")),
        Refused,
        ("a.jsonl: is a file", "give a folder"),
    ),
    Mistake(
        "trace a file of prompts with one answer",
        lambda folder: many(folder, LINE, "--explain", " Mary", "-o", str(folder / "out")),
        Refused,
        ("--explain: is for one prompt", "says for every line", "A line is for instance"),
    ),
    Mistake(
        "trace a file of prompts with a wrong threshold",
        lambda folder: many(folder, LINE, "--threshold", "-1", "-o", str(folder / "out")),
        Refused,
        ("threshold=-1.0", "the default is 0.005"),
    ),
    Mistake(
        "trace a file of prompts with a wrong bound",
        lambda folder: many(folder, LINE, "--max-nodes", "0", "-o", str(folder / "out")),
        Refused,
        ("max_nodes=0", "whole number from 1"),
    ),
    Mistake(
        "show a file that is not there",
        lambda folder: command(folder, "show", str(folder / "ioi.circuit")),
        Refused,
        ("ioi.circuit", "no file", "Check the name"),
    ),
    Mistake(
        "show a text",
        lambda folder: command(folder, "show", str(made_file(folder / "a.circuit", "Mary"))),
        Refused,
        ("a.circuit", "not a zip", "circuit.save"),
    ),
    Mistake(
        "plan on an unknown device",
        lambda folder: command(
            folder, "plan", "four-tasks", PROMPT, "--explain", " Mary", "--device", "tv", "--json"
        ),
        Refused,
        ("circuits: load(device='tv')", '"cpu" always works'),
    ),
    Mistake(
        "compare with a file that is not there",
        lambda folder: command(folder, "compare", saved(folder), str(folder / "b.circuit")),
        Refused,
        ("b.circuit", "no file", "Check the name"),
    ),
    Mistake(
        "compare circuits of other lengths",
        lambda folder: command(folder, "compare", saved(folder), saved(folder, 1)),
        Refused,
        ("14 tokens in a and 1 tokens in b", "do not meet", "Give --pooled"),
    ),
    Mistake(
        "compare into a picture",
        lambda folder: command(
            folder, "compare", saved(folder), saved(folder), "-o", str(folder / "a.svg")
        ),
        Refused,
        ("two circuits fit into a page (.html)",),
    ),
    Mistake(
        "features of a file that is not there",
        lambda folder: command(
            folder, "features", "build", "four-tasks", str(folder / "a.jsonl"), "-o", "cards"
        ),
        Refused,
        ("a.jsonl", "no such file", "one prompt a line"),
    ),
    Mistake(
        "features into a folder of something else",
        lambda folder: command(
            folder,
            "features",
            "build",
            "four-tasks",
            str(made_file(folder / "a.txt", "Mary")),
            "-o",
            str(folder),
        ),
        Refused,
        ("holds no feature cards", "Give a new folder"),
    ),
    Mistake(
        "features shown of no cards",
        lambda folder: command(folder, "features", "show", str(folder), "L0.f1"),
        Refused,
        ("holds no feature cards", "cards.json"),
    ),
    Mistake(
        "a feature without a card",
        lambda folder: command(folder, "features", "show", cards(folder), "L9.f1"),
        Refused,
        ("circuits: 'L9.f1': no card of that name", "(layer, index) of an MLP"),
    ),
    Mistake(
        "demo of an unknown task",
        lambda folder: command(folder, "demo", "--task", "chess", "-o", str(folder / "demo")),
        Refused,
        ("--task chess: no such task", "Known: ioi"),
    ),
    Mistake(
        "demo into a file",
        lambda folder: command(folder, "demo", "-o", str(made_file(folder / "demo"))),
        Refused,
        ("demo: is a file", "give a folder"),
    ),
    Mistake(
        "train on a file that is not there",
        lambda folder: command(
            folder, "train", "four-tasks", str(folder / "a.txt"), "-o", str(folder / "layers")
        ),
        Refused,
        ("a.txt", "no such file", "one prompt a line"),
    ),
    Mistake(
        "train into a file",
        lambda folder: command(
            folder,
            "train",
            "four-tasks",
            str(made_file(folder / "a.txt", PROMPT)),
            "-o",
            str(made_file(folder / "layers")),
        ),
        Refused,
        ("layers: is a file", "give a folder"),
    ),
]


@each(COMMANDS)
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)
