"""From whatever was given to tables of the right columns and types, or an error."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from graphs.nodes import EDGE_COLUMNS, INTERIOR, KINDS, NODE_COLUMNS, SOURCES, SUBLAYERS, rows_of
from graphs.order import topological_order

_INT64 = np.iinfo(np.int64)


def checked_tables(
    nodes: pd.DataFrame, edges: pd.DataFrame, meta: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Own copies of both tables, columns in order, int64, float64 and str, every rule checked."""
    nodes = _typed(nodes, NODE_COLUMNS, "nodes")
    nodes.index = pd.Index(_whole(nodes.index, "index", "nodes"), name="node")
    edges = _typed(edges, EDGE_COLUMNS, "edges").reset_index(drop=True)
    _check_rows(nodes, meta)
    _check_finite(nodes, edges)
    _check_edges(nodes, edges)
    return nodes, edges


def _in_order(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(sorted(pairs, key=lambda pair: pair[0]))


def checked_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """An own copy of meta as a file gives it back: keys text, in order; tuples lists."""
    try:
        plain = json.loads(json.dumps(meta, allow_nan=False), object_pairs_hook=_in_order)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ValueError(
            f"Graph: meta holds something JSON cannot ({problem}). Fits: dicts, lists, text, "
            "finite numbers, True, False, None. Turn tensors and numpy numbers into Python ones "
            "with .item() or .tolist()."
        ) from None
    if not isinstance(plain, dict):
        raise ValueError(
            f"Graph: meta is a {type(plain).__name__}; it must be a dict of named facts about the "
            "run."
        )
    target = plain.get("target")
    target = target if isinstance(target, dict) else {}
    tokens, n_layers, value = plain.get("tokens"), plain.get("n_layers"), target.get("value")
    wrong = []
    if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        wrong.append('"tokens" (a list of text)')
    if type(n_layers) is not int or n_layers < 0:
        wrong.append('"n_layers" (a whole number)')
    if not isinstance(target.get("label"), str):
        wrong.append('"target": {"label": text}')
    if isinstance(value, bool) or not isinstance(value, int | float):
        wrong.append('"target": {"value": number}')
    against = plain.get("against", {"tokens": tokens})
    others = against.get("tokens") if isinstance(against, dict) else None
    if not (isinstance(others, list) and all(isinstance(token, str) for token in others)):
        wrong.append('"against": {"tokens": a list of text}')
    elif isinstance(tokens, list) and len(others) != len(tokens):
        wrong.append(f'"against": {{"tokens": {len(tokens)} of them}}')
    condition = plain.get("condition", {"leaves": 1.0, "slope": 1.0})
    numbers = condition if isinstance(condition, dict) else {}
    if not all(isinstance(numbers.get(name), int | float) for name in ("leaves", "slope")):
        wrong.append('"condition": {"leaves": number, "slope": number}')
    wrong += _wrong_notes(plain)
    if wrong:
        raise ValueError(
            f"Graph: meta has keys {', '.join(map(repr, plain)) or 'none'}; missing or of another "
            f"type: {', '.join(wrong)}. Give these; everything else in meta is optional."
        )
    return plain


def _wrong_notes(meta: dict[str, Any]) -> list[str]:
    """What of groups, pins and details is not as pages and files take it."""
    wrong = []
    groups = meta.get("groups", [])
    if not isinstance(groups, list) or not all(map(_is_group, groups)):
        wrong.append('"groups": [{"label": text, "nodes": [node numbers]}]')
    if not _are_numbers(meta.get("pins", [])):
        wrong.append('"pins": [node numbers]')
    details = meta.get("details", {})
    parts = list(details.values()) if isinstance(details, dict) else [None]
    if not all(
        isinstance(part, dict) and all(isinstance(one, dict) for one in part.values())
        for part in parts
    ):
        wrong.append('"details": {name: {node number: {…}}}')
    return wrong


def _is_group(group: Any) -> bool:
    known = isinstance(group, dict) and isinstance(group.get("label"), str)
    return known and _are_numbers(group.get("nodes"))


def _are_numbers(given: Any) -> bool:
    return isinstance(given, list) and all(type(number) is int for number in given)


def _typed(table: pd.DataFrame, columns: Mapping[str, type], name: str) -> pd.DataFrame:
    if not isinstance(table, pd.DataFrame):
        raise ValueError(
            f"Graph: {name} is a {type(table).__name__}; it must be a pandas DataFrame."
        )
    missing = [column for column in columns if column not in table.columns]
    unknown = [str(column) for column in table.columns if column not in columns]
    if missing or unknown or len(table.columns) != len(columns):
        raise ValueError(
            f"Graph: {name} has columns {', '.join(map(str, table.columns))}. It must have "
            f"exactly {', '.join(columns)}: missing {', '.join(missing) or 'none'}, unknown "
            f"{', '.join(unknown) or 'none'}. graphs.nodes.node_table and edge_table fill what is "
            "absent."
        )
    convert = {str: _text, int: _whole, float: _real}
    return pd.DataFrame(
        {column: convert[kind](table[column], column, name) for column, kind in columns.items()},
        index=table.index,
        copy=False,  # they are copies
    )


def _whole(values: pd.Series | pd.Index, column: str, name: str) -> np.ndarray:
    array = values.to_numpy()
    if array.dtype.kind == "u" and len(array) and array.max() > _INT64.max:
        array = array.astype(object)
    if array.dtype.kind not in "iu" and len(array):
        raise ValueError(
            f"Graph: {name}.{column} is of type {values.dtype}; it must hold whole numbers "
            f"(int64). Convert it with {name}[{column!r}].astype('int64')."
        )
    return array.astype(np.int64)


def _real(values: pd.Series, column: str, name: str) -> np.ndarray:
    array = values.to_numpy()
    if array.dtype.kind not in "fiu" and len(array):
        raise ValueError(
            f"Graph: {name}.{column} is of type {values.dtype}; it must hold numbers (float64). "
            f"Convert it with {name}[{column!r}].astype('float64')."
        )
    return array.astype(np.float64)


def _text(values: pd.Series, column: str, name: str) -> pd.Series:
    if isinstance(values.dtype, pd.StringDtype) and not values.hasnans:
        return values.astype(str)
    odd = (
        next((value for value in values if not isinstance(value, str)), None)
        if len(values)
        else None
    )
    if odd is not None:
        raise ValueError(
            f"Graph: {name}.{column} holds {odd!r} ({type(odd).__name__}); it must hold text. "
            'Where there is none write "".'
        )
    return pd.Series(values.to_numpy(dtype=object), index=values.index, dtype=str)


def _check_rows(nodes: pd.DataFrame, meta: dict[str, Any]) -> None:
    numbers = np.asarray(nodes.index)
    twice = np.asarray(nodes.index.duplicated(), dtype=bool)
    wrong = numbers[twice | (numbers < 0)]
    if len(wrong):
        raise ValueError(
            "Graph: node numbers must be 0 or more and occur once; these do not fit: "
            f"{wrong[:5].tolist()}. Number the rows with range(len(nodes))."
        )
    for column, fits in (("kind", KINDS), ("sublayer", SUBLAYERS)):
        unknown = sorted(set(nodes[column].tolist()) - set(fits))
        if unknown:
            raise ValueError(
                f"Graph: nodes.{column} holds {unknown[:5]}; it must be one of {list(fits)}. "
                "Rename these or drop their rows."
            )
    targets = numbers[np.asarray(nodes["kind"] == "target")].tolist()
    if len(targets) != 1:
        raise ValueError(
            f'Graph: {len(targets)} rows of kind "target" (nodes {targets[:5]}); there must be '
            "exactly one. A difference of two logits is one target."
        )
    sizes = len(meta["tokens"]), meta["n_layers"]
    for column, end in (("pos", sizes[0] - 1), ("layer", sizes[1])):
        values = np.asarray(nodes[column])
        outside = numbers[(values < -1) | (values > end)].tolist()
        if outside:
            raise ValueError(
                f"Graph: nodes.{column} must lie between -1 and {end} (meta has {sizes[0]} tokens "
                f"and {sizes[1]} layers); nodes {outside[:5]} do not. Correct them or meta."
            )


def _check_finite(nodes: pd.DataFrame, edges: pd.DataFrame) -> None:
    for table, columns, name in ((nodes, NODE_COLUMNS, "nodes"), (edges, EDGE_COLUMNS, "edges")):
        for column in (column for column, kind in columns.items() if kind is float):
            values = np.asarray(table[column])
            bad = np.isinf(values) if column == "effect" else ~np.isfinite(values)
            if bad.any():
                raise ValueError(
                    f"Graph: {name}.{column} holds {values[bad][0]} ({int(bad.sum())} such rows, "
                    f"first row {int(np.argmax(bad))}); it must be finite. Only edges.effect may "
                    "be NaN, where it was not asked for. Look for an overflow in the run, or use "
                    "dtype='float64'."
                )


def _check_edges(nodes: pd.DataFrame, edges: pd.DataFrame) -> None:
    ends = np.stack([edges["source"], edges["target"]])
    writer, reader = rows_of(nodes, ends[0]), rows_of(nodes, ends[1])
    strange = np.unique(ends[:, (writer < 0) | (reader < 0)])
    strange = strange[~np.isin(strange, nodes.index)][:5].tolist()
    if strange:
        raise ValueError(
            f"Graph: edges name nodes {strange} that the node table does not have. "
            "Give every end of an edge a row, or drop the edge."
        )
    names = set(edges["via"].tolist())
    if "" in names:
        raise ValueError(
            "Graph: edges.via is empty in some rows; it must say what carries the edge. "
            'Along the residual stream that is "residual".'
        )
    number = reader * len(nodes) + writer
    if len(names) > 1:
        number += pd.factorize(edges["via"])[0] * len(nodes) ** 2
    in_order = (number[1:] > number[:-1]).all()  # as traced; then none can occur twice
    repeated = pd.Series(number[: 0 if in_order else None]).duplicated()
    if repeated.any():
        first = ends[:, int(repeated.argmax())]
        raise ValueError(
            f"Graph: the edge (source, target) = {tuple(first.tolist())} occurs twice "
            "with the same via. Add their flows up into one row."
        )
    _check_ends(nodes, writer, reader)
    forward = (writer < reader).all()
    if not forward and len(topological_order(writer, reader, len(nodes))) < len(nodes):
        raise ValueError(
            "Graph: the edges run in a circle. A writer must come before its reader: check that "
            "source and target are not exchanged."
        )


def _check_ends(nodes: pd.DataFrame, writer: np.ndarray, reader: np.ndarray) -> None:
    kind = np.asarray(nodes["kind"], dtype=object)
    for rows, end, kinds in (
        (writer, "source", (*SOURCES, *INTERIOR)),
        (reader, "target", (*INTERIOR, "target")),
    ):
        used = np.flatnonzero(np.bincount(rows))
        wrong = used[~np.isin(kind[used], kinds)]
        if len(wrong):
            raise ValueError(
                f"Graph: the {end} of an edge is node {nodes.index[wrong[0]]} of kind "
                f"{kind[wrong[0]]!r}; it must be one of {', '.join(kinds)}. What errors, biases "
                "and cut nodes give goes into in_error, in_bias and in_pruned."
            )
