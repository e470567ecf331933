"""How well each method's scores of single nodes agree with activation patching, by node kind.

Every node alone is set to what it wrote in the counterfactual run, the real model reacting; the
Pearson correlation is over the nodes of all pairs of a task.
"""

from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.baselines.nodes import (
    PUBLISHED,
    Derivatives,
    component_nodes,
    differentiated,
    feature_nodes,
    patched_each,
    swept,
)
from benchmarks.edges import EdgeModel, Pairs
from benchmarks.report.cells import Figures
from benchmarks.report.settings import Settings
from benchmarks.role_circuits import Asked, ask
from circuits import load

BASES = {"neurons": "heads", "transcoders": "lorsa"}
"""What MLPs are read through, and with it attention."""
KINDS = ("tokens", "heads", "MLP outputs", "neurons", "features", "Lorsa heads", "errors")


def agreement_figures(task: str, settings: Settings) -> Figures:
    """Return, by node kind, how many nodes were patched and every method's correlation."""
    model = EdgeModel(load(settings.model, mlp="neurons", attention="heads"))
    truth: dict[str, list[Tensor]] = defaultdict(list)
    scores: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for mlp, attention in BASES.items():
        source = load(settings.model, mlp=mlp, attention=attention)
        for asked in ask(source, task, settings.patched_prompts, seed=1):
            one = as_pair(asked)
            found = feature_nodes(asked.run, asked.other)
            if mlp == "neurons":
                found += component_nodes(model, one)
            estimates = _derivatives(model, asked, one)
            for nodes in (kind.strongest(settings.patched_nodes) for kind in found):
                truth[nodes.kind].append(patched_each(model, one, nodes))
                for method, (derivatives, of_itself) in estimates.items():
                    wrote = nodes.clean if of_itself else nodes.change
                    score = (wrote * derivatives[nodes.part][nodes.pos]).sum(-1)
                    scores[nodes.kind][method].append(score)
    return {
        kind: {
            "nodes": sum(map(len, truth[kind])),
            **{name: pearson(one, truth[kind]) for name, one in scores[kind].items()},
        }
        for kind in KINDS
    }


def as_pair(asked: Asked) -> Pairs:
    """Return a prompt and its counterfactual as a batch of one, the target as its metric."""
    run = asked.run
    weights = torch.zeros(1, run.weights.d_vocab)
    for term in asked.target.terms:
        weights[0, term.index] += term.weight
    end = torch.tensor([len(run.tokens) - 1])
    return Pairs(run.token_ids[None], torch.tensor([*asked.counterfactual])[None], end, weights)


def pearson(scores: list[Float[Tensor, " _"]], truth: list[Float[Tensor, " _"]]) -> float | None:
    """Return the correlation over all nodes together; None where there is none to speak of."""
    both = torch.stack([torch.cat(scores), torch.cat(truth)]).double()
    found = float(torch.corrcoef(both)[0, 1]) if both.shape[1] > 1 else float("nan")
    return None if found != found else found


def _derivatives(model: EdgeModel, asked: Asked, one: Pairs) -> dict[str, tuple[Derivatives, bool]]:
    """By method: the derivatives, and whether they take what was written, not its difference."""
    held = swept(asked.target)
    return {
        "contrast": (swept(asked.difference), False),
        "held, of the difference": (held, False),
        "held trace": (held, True),
        **{name: (method(model, one), False) for name, method in PUBLISHED.items()},
        "gradient × activation": (differentiated(model, one), True),
    }
