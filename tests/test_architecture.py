"""Who may import whom, and what the packages never do: read off the syntax tree of every file.

The checker is a function of a folder, so that it is itself tested on small bad trees.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "replacement": {"replacement"},
    "graphs": {"graphs"},
    "attribution": {"attribution", "replacement", "graphs"},
    "circuits": {"circuits", "attribution", "replacement", "graphs"},
    "benchmarks": {"benchmarks", "circuits", "attribution", "replacement", "graphs"},
}
"""Package: which of ours it may import (docs/design.md, where things live)."""
FOREIGN = {"torch", "nnsight", "transformers", "safetensors", "jaxtyping", "einops", "tokenizers"}
"""What `graphs` does without: a saved circuit opens without a model."""
ONLY_USER_OF_NNSIGHT = "replacement/tracing.py"
TRAINS = ("replacement/training/", "benchmarks/four_tasks/model.py", "benchmarks/baselines/")
TRAINS += ("benchmarks/selection/rules.py",)  # gradient x activation, a method of others
"""Where gradients are (training, and methods of others): elsewhere there are matrix products."""
GRADIENT_CALLS = {
    "backward",
    "autograd",
    "enable_grad",
    "requires_grad_",
    "jacrev",
    "jacfwd",
    "vjp",
}
MAX_LINES = 400


@dataclass(frozen=True)
class Module:
    """One Python file of a package."""

    path: str
    """From the root, with slashes."""
    name: str
    tree: ast.Module
    n_lines: int

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


def modules_of(root: Path) -> list[Module]:
    """Return every Python file of our packages under `root`."""
    found = []
    for package in MAY_IMPORT:
        for file in sorted((root / package).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            path = file.relative_to(root)
            parts = path.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            tree = ast.parse(text, str(path))
            found.append(Module(path.as_posix(), name, tree, text.count("\n")))
    return found


def imports(module: Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (module, names taken from it) of every import, those inside functions too."""
    is_package = module.path.endswith("__init__.py")
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from ((alias.name, ()) for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                taken = tuple(alias.name for alias in names)
                if level:
                    parts = module.name.split(".")
                    above = parts[: len(parts) - level + is_package]
                    source = ".".join([*above, *([source] if source else [])])
                yield source or "", taken
            case ast.Call(func=function, args=[ast.Constant(value=str(source)), *_]):
                if ast.unparse(function).split(".")[-1] in ("import_module", "__import__"):
                    yield source, ()


def import_problems(modules: list[Module]) -> Iterator[str]:
    """Directions: who may import whom, and which foreign libraries."""
    for module in modules:
        for source, _ in imports(module):
            top = source.split(".")[0]
            if top in MAY_IMPORT and top not in MAY_IMPORT[module.package]:
                yield f"{module.path}: {module.package} may not import {source}"
            if top == "nnsight" and module.path != ONLY_USER_OF_NNSIGHT:
                yield f"{module.path}: only {ONLY_USER_OF_NNSIGHT} imports nnsight"
            if module.package == "graphs" and top in FOREIGN:
                yield f"{module.path}: graphs does without {top}"
            if top == "tests":
                yield f"{module.path}: packages do not import tests"


def cycle_problems(modules: list[Module]) -> Iterator[str]:
    """No two files need each other, not even by imports inside functions."""
    names = {module.name for module in modules}
    graph = networkx.DiGraph()
    for module in modules:
        for source, taken in imports(module):
            inner = {f"{source}.{name}" for name in taken} & names
            # `from package import submodule` needs the submodule, not what else the package holds
            needed = inner if len(inner) == len(taken) and inner else inner | ({source} & names)
            graph.add_edges_from((module.name, name) for name in needed if name != module.name)
    for members in networkx.strongly_connected_components(graph):
        if len(members) > 1:
            yield f"import cycle: {', '.join(sorted(members))}"


def gradient_problems(modules: list[Module]) -> Iterator[str]:
    """Contributions are matrix products: autograd only in training and in others' methods."""
    for module in modules:
        if module.path.startswith(TRAINS):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr in GRADIENT_CALLS:
                yield f"{module.path}:{node.lineno}: .{node.attr}"
        for source, taken in imports(module):
            if source == "torch.autograd" or (source == "torch" and "autograd" in taken):
                yield f"{module.path}: imports torch.autograd"


def print_problems(modules: list[Module]) -> Iterator[str]:
    """Packages return text or log it; they do not print."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                yield f"{module.path}:{node.lineno}: print("


def length_problems(modules: list[Module]) -> Iterator[str]:
    """A file is one stage: what grows past 400 lines is several."""
    for module in modules:
        if module.n_lines > MAX_LINES:
            yield f"{module.path}: {module.n_lines} lines, at most {MAX_LINES}"


CHECKS: list[Callable[[list[Module]], Iterator[str]]] = [
    import_problems,
    cycle_problems,
    gradient_problems,
    print_problems,
    length_problems,
]


@pytest.fixture(scope="module")
def ours() -> list[Module]:
    return modules_of(ROOT)


def test_every_package_is_looked_at(ours: list[Module]) -> None:
    """The checker sees files: a renamed package would otherwise pass in silence."""
    assert {module.package for module in ours} == set(MAY_IMPORT)
    assert ONLY_USER_OF_NNSIGHT in {module.path for module in ours}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_packages_keep_to_the_design(
    check: Callable[[list[Module]], Iterator[str]], ours: list[Module]
) -> None:
    assert list(check(ours)) == []


def test_only_tracing_uses_nnsight(ours: list[Module]) -> None:
    users = [
        module.path
        for module in ours
        if any(source.split(".")[0] == "nnsight" for source, _ in imports(module))
    ]
    assert users == [ONLY_USER_OF_NNSIGHT]


BAD: dict[str, tuple[dict[str, str], Callable, list[str]]] = {
    "upward": (
        {"replacement/run.py": "import graphs.nodes\n", "graphs/nodes.py": ""},
        import_problems,
        ["replacement/run.py: replacement may not import graphs.nodes"],
    ),
    "upward inside a function": (
        {"attribution/sweep.py": "def f():\n    from circuits import load\n    return load\n"},
        import_problems,
        ["attribution/sweep.py: attribution may not import circuits"],
    ),
    "upward by name": (
        {"graphs/a.py": "import importlib\nx = importlib.import_module('attribution.sweep')\n"},
        import_problems,
        ["graphs/a.py: graphs may not import attribution.sweep"],
    ),
    "upward relative": (
        {"replacement/layers/a.py": "from ...circuits import b\n"},
        import_problems,
        ["replacement/layers/a.py: replacement may not import circuits"],
    ),
    "torch in graphs": (
        {"graphs/files/a.py": "def f():\n    import torch.nn\n"},
        import_problems,
        ["graphs/files/a.py: graphs does without torch"],
    ),
    "nnsight elsewhere": (
        {"replacement/run.py": "from nnsight import NNsight\n"},
        import_problems,
        ["replacement/run.py: only replacement/tracing.py imports nnsight"],
    ),
    "cycle of two": (
        {"graphs/a.py": "from .b import x\n", "graphs/b.py": "from graphs.a import y\n"},
        cycle_problems,
        ["import cycle: graphs.a, graphs.b"],
    ),
    "cycle through a function and a package": (
        {
            "graphs/a.py": "from . import c\n",
            "graphs/c/__init__.py": "from .d import x\n",
            "graphs/c/d.py": "def f():\n    from ..a import y\n    return y\n",
        },
        cycle_problems,
        ["import cycle: graphs.a, graphs.c, graphs.c.d"],
    ),
    "backward": (
        {"attribution/sweep.py": "def f(loss):\n    loss.backward()\n"},
        gradient_problems,
        ["attribution/sweep.py:2: .backward"],
    ),
    "autograd": (
        {"replacement/held.py": "import torch\nf = torch.autograd.grad\n"},
        gradient_problems,
        ["replacement/held.py:2: .autograd"],
    ),
    "autograd imported": (
        {"replacement/held.py": "from torch import autograd\n"},
        gradient_problems,
        ["replacement/held.py: imports torch.autograd"],
    ),
    "print": (
        {"circuits/cli.py": "def f():\n    print('x')\n"},
        print_problems,
        ["circuits/cli.py:2: print("],
    ),
    "long file": (
        {"circuits/cli.py": "x = 1\n" * 401},
        length_problems,
        ["circuits/cli.py: 401 lines, at most 400"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_checker_can_fail(tmp_path: Path, name: str) -> None:
    """Control: each rule is broken once in a made-up tree, and found."""
    files, check, expected = BAD[name]
    write(tmp_path, files)
    assert list(check(modules_of(tmp_path))) == expected


def test_the_checker_lets_the_good_pass(tmp_path: Path) -> None:
    """Downward imports, a docstring that says print(, training with gradients: all fine."""
    write(
        tmp_path,
        {
            "replacement/__init__.py": '"""Say print(x) and loss.backward()."""\n',
            "replacement/tracing.py": "import nnsight\n",
            "replacement/training/trainer.py": "def f(loss):\n    loss.backward()\n",
            "replacement/layers/__init__.py": "from .a import x\n",
            "replacement/layers/a.py": "x = 1\n",
            "replacement/run.py": "from . import tracing\nfrom .layers import x\n",
            "graphs/nodes.py": "import numpy\n",
            "attribution/sweep.py": "from graphs.nodes import a\nfrom replacement import run\n",
            "circuits/__init__.py": "def lazy():\n    from .loading import f\n    return f\n",
            "circuits/loading.py": "import attribution.sweep\n",
        },
    )
    modules = modules_of(tmp_path)
    assert [problem for check in CHECKS for problem in check(modules)] == []


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
