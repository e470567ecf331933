"""The same files, read by us and by the packages that their formats come from.

Those packages cannot share an environment with this one; `make originals` makes them one of their
own, and LINEAR_CIRCUITS_ORIGINALS names its interpreter. Without it nothing here runs.
"""

import functools
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from replacement.layers import CrossLayerTranscoder, FeatureLayer
from replacement.layers.active import Active
from tests.originals.cases import ORIGINALS, Original
from tests.originals.conftest import DIFFERENCES

INTERPRETER = "LINEAR_CIRCUITS_ORIGINALS"
THEIRS = Path(__file__).with_name("theirs.py")
MODULES = {
    "sae-lens": "sae_lens",
    "circuit-tracer": "circuit_tracer",
    "eai-sparsify": "sparsify",
    "llamascopium": "llamascopium",
}
CLOSE = {"rtol": 0.0, "atol": 1e-6}

pytestmark = pytest.mark.skipif(
    INTERPRETER not in os.environ, reason=f"{INTERPRETER} names no interpreter: make originals"
)


def of(package: str) -> dict[str, Original]:
    return {name: case for name, case in ORIGINALS.items() if case.package == package}


def called(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the other interpreter; modules of ours are not on its path."""
    command = [os.environ[INTERPRETER], "-W", "ignore", *map(str, words)]
    environment = {name: held for name, held in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory):
    """Return what a package makes of all its files, and where they are; skips without it."""

    @functools.cache
    def of_package(package: str) -> tuple[str, Path, dict[str, Tensor]]:
        imported = called("-c", f"import {MODULES[package]}")
        if imported.returncode:
            pytest.skip(f"{package} cannot be imported: {imported.stderr.splitlines()[-1]}")
        folder = tmp_path_factory.mktemp(package)
        paths = {}
        for number, (name, case) in enumerate(of(package).items()):
            (folder / str(number)).mkdir()
            paths[name] = str(case.write(folder / str(number)))
        (folder / "cases.json").write_text(json.dumps(paths))
        save_file(
            {name: case.x for name, case in of(package).items()}, folder / "inputs.safetensors"
        )
        ran = called(THEIRS, package, folder)
        assert ran.returncode == 0, ran.stderr
        version = (folder / "version.txt").read_text()
        return version, folder, load_file(folder / "theirs.safetensors")

    return of_package


def dense(active: Active, like: Tensor, n_features: int) -> Tensor:
    activations = like.new_zeros(len(like), n_features)
    activations[active.pos, active.index] = active.activation
    return activations


def alone(layer: FeatureLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    return dense(layer.encode(x), x, layer.n_features), layer.forward(x)


def across(layers: list[CrossLayerTranscoder], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the features of all layers are worth, and their sums in every MLP's output."""
    active = [layer.encode(seen) for layer, seen in zip(layers, x, strict=True)]
    around = [layer.around(seen).expand_as(seen) for layer, seen in zip(layers, x, strict=True)]
    output = torch.stack(around)
    for number, layer in enumerate(layers):
        output[number:] += layer.spread(active[number])
    found = [dense(one, seen, layers[0].n_features) for one, seen in zip(active, x, strict=True)]
    return torch.stack(found), output


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_same_file_does_the_same(name: str, theirs, request: pytest.FixtureRequest) -> None:
    case = ORIGINALS[name]
    version, folder, found = theirs(case.package)
    read = case.read(folder / str(list(of(case.package)).index(name)))
    activations, output = across(read, case.x) if case.x.ndim == 3 else alone(read, case.x)
    pairs = [(activations, found[f"{name}/activations"]), (output, found[f"{name}/output"])]
    assert 0 < activations.count_nonzero() < activations.numel()
    largest = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    package = f"{case.package} {version}"
    request.config.stash[DIFFERENCES].setdefault(package, []).append(largest)
    for ours, theirs_ in pairs:
        torch.testing.assert_close(ours, theirs_, **CLOSE)
