"""Bad arguments of direct effects: what was given, what fits, what to do, in one paragraph."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest

from attribution import effect_request as module
from attribution.direct_effects import direct_effects
from tests.samples import Case, random_run

SKIPS = random_run(Case("two layers", "relu", skip=True))
OTHER = random_run(Case("two layers", "relu"))
N_SUBLAYERS = len(SKIPS.sublayers)


def at(number: int, nodes: Any) -> list[Any]:
    """Nodes of one sublayer."""
    given: list[Any] = [None] * N_SUBLAYERS
    given[number] = nodes
    return given


@dataclass(frozen=True)
class Mistake:
    name: str
    call: Callable[[], Any]
    error: type[Exception]
    says: tuple[str, ...]


MLP_NODES = SKIPS.sublayers[1].n_nodes
MISTAKES = [
    Mistake("a number", lambda: direct_effects(SKIPS, 3), TypeError, ("got int", "run.logit(")),
    Mistake("text", lambda: direct_effects(SKIPS, "all"), TypeError, ("got str", "None for all")),
    Mistake(
        "a target as source",
        lambda: direct_effects(SKIPS, None, SKIPS.logit(3)),
        TypeError,
        ("sources=", "got Target", "4 sublayers."),
    ),
    Mistake(
        "a target of another run",
        lambda: direct_effects(SKIPS, [SKIPS.logit(1), OTHER.logit(2)]),
        ValueError,
        ("logit([2]) belongs to another run", "Make it from the run"),
    ),
    Mistake(
        "targets and too few sublayers' nodes",
        lambda: direct_effects(SKIPS, [SKIPS.logit(1), None, None, None]),
        ValueError,
        ("3 entries", "4 sublayers", "or both"),
    ),
    Mistake("nothing", lambda: direct_effects(SKIPS, []), ValueError, ("0 entries", "4 sublayers")),
    Mistake(
        "too few sublayers",
        lambda: direct_effects(SKIPS, None, [None]),
        ValueError,
        ("sources=", "1 entry;", "one for each of the 4"),
    ),
    Mistake(
        "a mask of the wrong length",
        lambda: direct_effects(SKIPS, at(1, [True, False])),
        ValueError,
        ("a mask of 2 entries", "layer 0 (mlp)", f"{MLP_NODES} nodes"),
    ),
    Mistake(
        "a node that is not there",
        lambda: direct_effects(SKIPS, at(3, [999])),
        IndexError,
        ("layer 1 (mlp) has no node 999", "from 0 to"),
    ),
    Mistake(
        "a negative node",
        lambda: direct_effects(SKIPS, at(3, [-1])),
        IndexError,
        ("has no node -1",),
    ),
    Mistake(
        "shares for nodes",
        lambda: direct_effects(SKIPS, at(1, [0.5, 0.25])),
        TypeError,
        ("[0.5, 0.25]", "node numbers"),
    ),
    Mistake(
        "names for nodes",
        lambda: direct_effects(SKIPS, at(1, ["f3"])),
        TypeError,
        ("['f3']", "node numbers"),
    ),
    Mistake(
        "a head",
        lambda: direct_effects(SKIPS, at(0, [0])),
        ValueError,
        ("node 0 of layer 0 (attn) is a head or a skip", "pass through", 'edges="flow"'),
    ),
    Mistake(
        "a skip",
        lambda: direct_effects(SKIPS, None, at(1, [MLP_NODES - 1])),
        ValueError,
        (f"node {MLP_NODES - 1} of layer 0 (mlp) is a head or a skip",),
    ),
    Mistake(
        "an unknown split",
        lambda: direct_effects(SKIPS, None, via="layer"),
        ValueError,
        ("via='layer'", '"head"', "None"),
    ),
    Mistake(
        "an unknown precision",
        lambda: direct_effects(SKIPS, None, precision="fp8"),
        ValueError,
        ("precision='fp8'", "float32, bf16"),
    ),
    Mistake(
        "a way that is none",
        lambda: direct_effects(SKIPS, SKIPS.logit(1), via="head").matrix("L9.h0"),
        ValueError,
        ("'L9.h0'", "L0.h0", "bypass"),
    ),
    Mistake(
        "a way without a split",
        lambda: direct_effects(SKIPS, SKIPS.logit(1)).matrix("L0.h0"),
        ValueError,
        ("no such way", 'none without via="head"'),
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_explained(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(mistake.error) as caught:
        mistake.call()
    message = str(caught.value)
    assert not [words for words in mistake.says if words not in message], message
    assert "\n" not in message and len(message) <= 900
    assert not re.search(r"\bobject at 0x", message)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_what_does_not_fit_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _device: 10_000)
    monkeypatch.setattr(module.EffectRows, "blocks", None)
    with pytest.raises(MemoryError, match=r"effects on \d+ targets .* 10.0 kB are free.*fit"):
        direct_effects(SKIPS)
    monkeypatch.undo()
    monkeypatch.setattr(module, "free_bytes", lambda _device: 10_000)
    assert len(direct_effects(SKIPS, SKIPS.logit(1)).blocks) == 1
    with pytest.raises(MemoryError, match=r"on 1 target take"):
        monkeypatch.setattr(module, "free_bytes", lambda _device: 3_000)
        direct_effects(SKIPS, SKIPS.logit(1), via="head")
