"""The names that docs/design.md promises: in every import order, without torch where it says."""

import ast
import json
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import circuits
from circuits import (
    AverageCircuit,
    Circuit,
    Plan,
    ReplacementModel,
    Run,
    Target,
    load,
    plan,
    read,
    trace,
)
from circuits.loaded import LoadedModel
from graphs.nodes import EDGE_COLUMNS, NODE_COLUMNS
from tests.samples import random_gpt2

ROOT = Path(__file__).parents[2]
NAMES = [
    *("Ablate", "Add", "AverageCircuit", "Circuit", "Node", "Plan", "ReplacementModel", "Run"),
    *("Scale", "Set", "SetPattern", "Target", "build_features", "compare", "load", "plan", "read"),
    *("read_cards", "trace", "trace_many"),
]


def in_a_new_process(code: str, *arguments: str, **environment: str) -> Any:
    """Run code in an interpreter that has imported nothing; what it printed, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


ORDERS = """
import importlib, json, sys
OURS = ("circuits", "replacement", "attribution", "graphs")
def forget():
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
wrong = []
for order in json.loads(sys.argv[1]):
    forget()
    for step in order:
        if step.startswith("import "):
            importlib.import_module(step.removeprefix("import "))
        else:
            exec(f"from circuits import {step}")
    from circuits import load, plan, read, trace
    if not all(map(callable, (load, plan, read, trace))):
        wrong.append(order)
print(json.dumps(wrong))
"""


def test_verbs_are_callable_in_every_import_order() -> None:
    modules = ["import circuits.tracer", "import circuits.loading", "import circuits.circuit"]
    orders = [
        *permutations(["load", "trace", "read"]),
        *permutations([modules[0], modules[1], "import attribution.plan"]),
        *((module, verb) for module in modules for verb in ("load", "trace", "read")),
        *((verb, module) for module in modules for verb in ("load", "trace", "read")),
        ["import circuits.cli", "trace"],
        ["import circuits.testing", "plan", "import circuits.tracer", "trace"],
    ]
    assert in_a_new_process(ORDERS, json.dumps(list(orders))) == []


LAZY = """
import json, sys
import circuits
before = "torch" in sys.modules
from circuits import read
print(json.dumps([before, "torch" in sys.modules, sorted(dir(circuits))]))
"""


def test_importing_read_brings_no_torch() -> None:
    assert in_a_new_process(LAZY) == [False, False, NAMES]


WITHOUT_TORCH = """
import json, sys
from circuits import read
circuit = read(sys.argv[1])
small = circuit.prune(0.6)
small.save(sys.argv[2] + "/small.svg")
small.save(sys.argv[2] + "/small.circuit")
shown = [repr(circuit), repr(small), str(small.paths(3)), str(small.graph), str(small.explained)]
from typer.testing import CliRunner
from circuits.cli import app
result = CliRunner().invoke(app, ["show", sys.argv[1], "-o", sys.argv[2] + "/shown.svg"])
heavy = [name for name in ("torch", "transformers", "nnsight") if name in sys.modules]
print(json.dumps([heavy, all(shown), result.exit_code, result.exception is None]))
"""


def test_a_saved_circuit_opens_prunes_and_draws_without_torch(tmp_path: Path) -> None:
    circuit = trace(load(random_gpt2()).run([1, 2, 3, 4]).logit(5), 0.01, progress=False)
    saved = circuit.save(tmp_path / "a.circuit")
    assert in_a_new_process(WITHOUT_TORCH, str(saved), str(tmp_path)) == [[], True, 0, True]
    assert (tmp_path / "shown.svg").read_text().startswith("<svg")
    assert read(tmp_path / "small.circuit").meta["pruned"] == 0.6


def test_the_package_lists_its_names_and_no_others() -> None:
    assert circuits.__all__ == NAMES == dir(circuits)
    assert all(getattr(circuits, name) is not None for name in NAMES)
    with pytest.raises(
        AttributeError, match="circuits has no 'tracee'; it has Ablate, Add, AverageCircuit"
    ):
        _ = circuits.tracee


def test_type_checkers_see_every_name_that_is_looked_up_late() -> None:
    """What stands under TYPE_CHECKING is what `__getattr__` finds."""
    tree = ast.parse((ROOT / "circuits" / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == circuits._HOMES


PROMISED = [
    (
        Circuit,
        "nodes edges value graph explained prune paths save test attach meta without faithfulness",
    ),
    (Run, "logit feature direction edited tokens token_ids prompt logits"),
    (Target, "centered value label"),
    (ReplacementModel, "run generate"),
    (LoadedModel, "run generate connections feature_tokens"),
    (AverageCircuit, "nodes edges value explained prune paths save prompts nodes_in"),
    (Plan, "nodes passes bytes edges"),
]


@pytest.mark.parametrize(
    ("kind", "names"), PROMISED, ids=lambda part: getattr(part, "__name__", "")
)
def test_objects_have_the_names_they_promise(kind: type, names: str) -> None:
    known = {*dir(kind), *getattr(kind, "__dataclass_fields__", {})}
    assert set(names.split()) <= known


def test_verbs_give_what_they_promise(tmp_path: Path) -> None:
    model = load(random_gpt2())
    run = model.run([1, 2, 3])
    target = run.logit(4) - 2 * run.logit(5)
    assert isinstance(model, ReplacementModel) and isinstance(run, Run)
    assert isinstance(target, Target) and isinstance(plan(target), Plan)
    circuit = trace(target, threshold=0.005, max_nodes=None)
    assert isinstance(circuit, Circuit) and isinstance(circuit.prune(0.8), Circuit)
    assert isinstance(read(circuit.save(tmp_path / "a.circuit")), Circuit)


def test_tables_have_at_least_the_columns_of_the_design() -> None:
    names = {"kind", "layer", "sublayer", "pos", "index", "token", "label"}
    assert names | {"activation", "attribution"} <= set(NODE_COLUMNS)
    assert list(EDGE_COLUMNS) == ["source", "target", "via", "flow", "effect"]
