"""Files of other formats that cannot be written or read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphs.example import worked_example
from graphs.files import read_file, save
from graphs.files.neuronpedia import to_foreign
from tests.errors.mistakes import Mistake, assert_explained, each


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], object]:
    """Read a file of the example with something changed."""

    def call(folder: Path) -> object:
        content = to_foreign(worked_example())
        change(content)
        path = folder / "a.json"
        path.write_text(json.dumps(content))
        return read_file(path)

    return call


def foreign(content: dict[str, Any]) -> None:
    for node in content["nodes"]:
        del node["linear_circuits"]


def of_other_type(content: dict[str, Any]) -> None:
    foreign(content)
    content["nodes"][1]["feature_type"] = "banana"


def without_logit(content: dict[str, Any]) -> None:
    foreign(content)
    content["nodes"][5]["feature_type"] = "embedding"


def in_a_circle(content: dict[str, Any]) -> None:
    foreign(content)
    content["links"].append({"source": "1_neuron_0_0", "target": "0_neuron_0_0", "weight": 1.0})


def outside(content: dict[str, Any]) -> None:
    foreign(content)
    content["nodes"][1]["ctx_idx"] = 7


EXPORTS = [
    Mistake(
        "an unknown ending",
        lambda folder: save(worked_example(), folder / "a.docx"),
        ValueError,
        ("a.docx' ends in '.docx'", ".circuit, .html, .json, .svg", "circuits.read opens again"),
    ),
    Mistake(
        "png without cairosvg",
        lambda folder: save(worked_example(), folder / "a.png"),
        ValueError,
        (".png needs cairosvg", "pip install cairosvg", ".svg"),
    ),
    Mistake(
        "json that is none",
        lambda folder: read_file(_file(folder, "{")),
        ValueError,
        ("a.json' cannot be opened as a circuit", "It is not JSON"),
    ),
    Mistake(
        "json of something else",
        lambda folder: read_file(_file(folder, '{"nodes": []}')),
        ValueError,
        ("metadata, links", "circuit-tracer", "neuronpedia.org"),
    ),
    Mistake(
        "a node without an id",
        changed(lambda content: content["nodes"][2].pop("node_id")),
        ValueError,
        ("nodes[2] lacks node_id, ctx_idx, feature_type",),
    ),
    Mistake(
        "colliding ids",
        changed(lambda content: content["nodes"][2].update(node_id="0_neuron_0_0")),
        ValueError,
        ("Of 6 node ids 5 differ", "collide"),
    ),
    Mistake(
        "damaged columns",
        changed(lambda content: content["nodes"][2]["linear_circuits"].update(attribution=[])),
        ValueError,
        ('under "linear_circuits" is damaged', "Save the circuit again"),
    ),
    Mistake("a node type", changed(of_other_type), ValueError, ("'banana' are not known", "lorsa")),
    Mistake("no logit", changed(without_logit), ValueError, ("no node of type logit",)),
    Mistake("a circle", changed(in_a_circle), ValueError, ("run in a circle",)),
    Mistake("a position", changed(outside), ValueError, ("outside the 1 tokens",)),
    Mistake(
        "a prompt",
        changed(lambda content: (foreign(content), content["metadata"].pop("prompt_tokens"))),
        ValueError,
        ("metadata.prompt_tokens is no list of text",),
    ),
]


def _file(folder: Path, text: str) -> Path:
    path = folder / "a.json"
    path.write_text(text)
    return path


@each(EXPORTS)
def test_exports(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)
