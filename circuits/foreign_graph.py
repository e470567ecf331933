"""circuit-tracer's graph files (.pt), read without running anything that they hold."""

from pathlib import Path
from typing import Any

import torch

from graphs.files.effects import graph_of_effects
from graphs.graph import Graph

OF_THEIRS = ("circuit_tracer.", "transformer_lens.")
"""Where the classes of such a file come from; they are read as empty records."""


class _Record:
    """In the place of any class of theirs: keeps what it is given, does nothing."""

    def __new__(cls, *given: Any) -> "_Record":
        made = super().__new__(cls)
        made.given = given
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    given: tuple[Any, ...]


def read_pt(path: Path) -> Graph:
    """Return the graph in a .pt file that circuit-tracer's `Graph.to_pt` wrote.

    Its direct effects become `effect`, and flows are made of them (`graphs.files.effects`). The
    file has token ids and no texts, so tokens are shown as ids. Raises ValueError where it is no
    such file, or asks for classes that such a file does not hold.
    """
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        strange = [name for name in asked if not name.startswith(OF_THEIRS)]
        if strange:
            raise ValueError(
                f"it asks for {', '.join(sorted(strange)[:3])}, which no such file holds; nothing "
                "of it was run"
            )
        with torch.serialization.safe_globals([(_Record, name) for name in asked]):
            held = torch.load(path, weights_only=True, map_location="cpu")
        content = _content(held)
    except Exception as problem:
        raise ValueError(
            f"read: {str(path)!r} cannot be opened as a circuit-tracer graph ({problem}). Such "
            "files come from its Graph.to_pt."
        ) from None
    return graph_of_effects(content)


def _content(held: dict[str, Any]) -> dict[str, Any]:
    """The same in circuit-tracer's JSON."""
    selected, active = held["selected_features"], held["active_features"]
    tokens, values = held["input_tokens"].flatten().tolist(), held["activation_values"]
    matrix = held["adjacency_matrix"]
    chosen = active[selected].tolist()
    values = (values if len(values) == len(selected) else values[selected]).tolist()
    chances = held["logit_probabilities"].tolist()
    targets = _targets(held["logit_targets"])
    n_layers = (len(matrix) - len(chosen) - len(tokens) - len(targets)) // max(len(tokens), 1)
    nodes = [
        _node(f"{layer}_{index}_{pos}", "cross layer transcoder", layer, pos, activation=value)
        for (layer, pos, index), value in zip(chosen, values, strict=True)
    ]
    nodes += [
        _node(f"{layer}_error_mlp_{pos}", "mlp reconstruction error", layer, pos)
        for layer in range(n_layers)
        for pos in range(len(tokens))
    ]
    nodes += [_node(f"E_{token}_{pos}", "embedding", "E", pos) for pos, token in enumerate(tokens)]
    nodes += [
        _node(
            f"{n_layers + 1}_{number}_{len(tokens) - 1}_{place}",
            "logit",
            n_layers + 1,
            len(tokens) - 1,
            clerp=f'Output "{text or number}"',
            token_prob=chance,
            is_target_logit=place == 0,
        )
        for place, ((text, number), chance) in enumerate(zip(targets, chances, strict=True))
    ]
    if len(nodes) != len(matrix) or matrix.shape != (len(nodes), len(nodes)):
        raise ValueError(f"{len(nodes)} nodes do not fit a matrix of shape {list(matrix.shape)}")
    names = [node["node_id"] for node in nodes]
    ends = matrix.nonzero()
    links = [
        {"source": names[source], "target": names[target], "weight": weight}
        for (target, source), weight in zip(
            ends.tolist(), matrix[ends[:, 0], ends[:, 1]].tolist(), strict=True
        )
    ]
    metadata = {
        "prompt_tokens": [f"[{token}]" for token in tokens],
        "prompt": str(held["input_string"]),
        "scan": str(held.get("scan") or ""),
    }
    return {"metadata": metadata, "qParams": {}, "nodes": nodes, "links": links}


def _node(name: str, kind: str, layer: int | str, pos: int, **more: Any) -> dict[str, Any]:
    return {"node_id": name, "feature_type": kind, "layer": str(layer), "ctx_idx": pos, **more}


def _targets(given: Any) -> list[tuple[str, int]]:
    """Text and number of every logit; older files hold the numbers alone."""
    if isinstance(given, torch.Tensor):
        return [("", int(number)) for number in given.tolist()]
    return [(str(one.given[0]), int(one.given[1])) for one in given]
