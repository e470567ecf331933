"""What each rule says of every node of one run: scores, and for gated rules at every size.

* gate, absolute: the hierarchical gate of `trace`, on |attribution|, at the threshold that leaves
  as many nodes as wanted; "gate, signed": the paper's own, on the attribution.
* ungated: |attribution| of a sweep in which every node passes on.
* gradient × activation: the derivative of the metric in the free model, where patterns, norms and
  gates react, times what the node is.
* … from the mean: what the node exceeds its mean by instead, since that is what ablation takes.
* influence: of absolute shares of direct effects, as attribution graphs prune.
* random: a number per node and role.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.by_influence import influence_scores
from attribution.direct_effects import direct_effects
from attribution.plan import node_limit
from attribution.sweep import GateRule, Sweep, sweep, traced_sweep
from benchmarks.selection.prompts import Asked
from circuits.by_role import Scores, active_nodes
from replacement.edits.keeping import Values, values_of
from replacement.held import FeatureNodes, HeldHeads
from replacement.run import Run

NEAR = 0.15
"""A gate's threshold is good where it leaves as many nodes as wanted up to this share."""
MOST_SWEEPS = 6


def ungated_scores(asked: Asked, reference: Values | None = None) -> Scores:
    """Return |attribution| of every node, everything held and every node passing on.

    With a `reference`: of what nodes exceed it by.
    """
    swept = sweep(asked.target, asked.run.sublayers)
    found = products(asked.run, [one[0] for one in swept.gradients], reference)
    return {part: score.abs() for part, score in found.items()}


def gradient_scores(asked: Asked, reference: Values | None = None) -> Scores:
    """Return |gradient · activation| in the free model, or of what nodes exceed a reference by."""
    found = products(asked.run, free_gradients(asked), reference)
    return {part: score.abs() for part, score in found.items()}


def products(
    run: Run, gradients: Sequence[Float[Tensor, "pos d_model"]], reference: Values | None = None
) -> Scores:
    """Return node · derivative of nodes that are active, given it at each sublayer's output."""
    found, values = {}, values_of(run)
    for part, value in values.items():
        number = run.place(*part[:2])
        own, at_output = run.sublayers[number], gradients[number]
        if part[2] == "error":
            derivative = at_output[:, None]
        elif isinstance(own, HeldHeads):
            derivative = own.held.reading(at_output)
        else:
            assert isinstance(own, FeatureNodes)
            derivative = at_output @ own.features.write.T
        product = (value if reference is None else value - reference[part]) * derivative
        found[part] = product if product.dim() == 2 else product.sum(-1)
    active = active_nodes(values)
    return {part: score * active[part] for part, score in found.items()}


def free_gradients(asked: Asked, *, hold_norms: bool = False) -> list[Float[Tensor, "pos d_model"]]:
    """Return the metric's derivative at what each sublayer of the bundled GPT-2 writes.

    `hold_norms`: the denominators of norms do not react, everything else does.
    """
    run, outputs = asked.run, []

    def watch(_module: object, _given: object, made: Any) -> None:
        outputs.append(made[0] if isinstance(made, tuple) else made)

    def held(norm: Any, given: tuple[Tensor, ...], _made: object) -> Tensor:
        centred = given[0] - given[0].mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach()
        return centred / scale * norm.weight + norm.bias

    hf_model = run.model.hf_model
    parts = [part for block in hf_model.transformer.h for part in (block.attn, block.mlp)]
    hooks = [part.register_forward_hook(watch) for part in parts]
    if hold_norms:
        norms = [one for one in hf_model.modules() if isinstance(one, torch.nn.LayerNorm)]
        hooks += [norm.register_forward_hook(held) for norm in norms]
    try:
        with torch.enable_grad():
            embedded = hf_model.get_input_embeddings()(run.token_ids[None]).requires_grad_()
            logits = hf_model(inputs_embeds=embedded).logits[0, -1]
            made = torch.autograd.grad((logits * asked.logit_weights).sum(), outputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [one[0] for one in made]


def gated_scores(asked: Asked, rule: GateRule, counts: Sequence[int]) -> list[Scores]:
    """Return, for each wanted number of nodes, |attribution| of those a gate leaves, 0 elsewhere.

    The threshold is found by halving; where it cannot leave so many (a signed gate stops all that
    count against the target) it leaves all it can.
    """
    ungated = sweep(asked.target, asked.run.sublayers)
    strengths = torch.cat([*ungated.attribution, ungated.leaves.error.flatten()]).abs()
    order = strengths.sort(descending=True).values.clamp_min(1e-12)
    found = []
    for count in counts:
        low, high = float(order[-1]), float(order[0])
        cutoff = float(order[min(count, len(order)) - 1])
        swept = sweep(asked.target, asked.run.sublayers, cutoff, rule=rule)
        for _ in range(MOST_SWEEPS):
            left = _n_left(swept, cutoff, rule)
            if abs(left - count) <= NEAR * count:
                break
            low, high = (cutoff, high) if left > count else (low, cutoff)
            cutoff = (low * high) ** 0.5
            swept = sweep(asked.target, asked.run.sublayers, cutoff, rule=rule)
        found.append(kept_scores(asked.run, swept, cutoff, rule))
    return found


def _n_left(swept: Sweep, cutoff: float, rule: GateRule) -> int:
    """How many nodes and errors a sweep left."""
    errors = swept.leaves.error
    strong = (errors.abs() if rule == "absolute" else errors) >= cutoff
    return sum(int(keep.sum()) for keep in swept.keep) + int((strong & (errors != 0)).sum())


def default_scores(asked: Asked) -> Scores:
    """Return |attribution| of the nodes that `trace` keeps by default, 0 elsewhere."""
    limit = node_limit(asked.run, None)
    swept, _, cutoff = traced_sweep(asked.target, 0.005, rule="absolute", limit=limit)
    return kept_scores(asked.run, swept, cutoff, "absolute")


def kept_scores(run: Run, swept: Sweep, cutoff: float, rule: GateRule) -> Scores:
    """Return |attribution| of nodes that a sweep kept and of errors as strong as its cutoff."""
    found = {}
    for part, active in active_nodes(values_of(run)).items():
        number = run.place(*part[:2])
        score = swept.attribution[number].new_zeros(active.shape)
        if part[2] == "error":
            strength = swept.leaves.error[number]
            strength = strength.abs() if rule == "absolute" else strength
            score[:, 0] = strength * (strength >= cutoff)
        else:
            nodes = swept.keep[number].nonzero()[:, 0]
            rows = run.sublayers[number].rows(nodes)
            score[rows.pos, rows.index] = swept.attribution[number][nodes].abs()
        found[part] = score
    return found


def influence_of_nodes(asked: Asked) -> Scores:
    """Return the influence of every node that is no head, every active node having a row."""
    run = asked.run
    every = [
        torch.arange(one.n_active) if isinstance(one, FeatureNodes) else None
        for one in run.sublayers
    ]
    effects = direct_effects(run, [*every, asked.target])
    table = effects.sources.assign(influence=influence_scores(effects).influence)
    found = {}
    for part, active in active_nodes(values_of(run)).items():
        kinds = ["error"] if part[2] == "error" else ["feature", "neuron", "lorsa"]
        here = table["layer"].eq(part[0]) & table["sublayer"].eq(part[1])
        rows: Any = table[here & table["kind"].isin(kinds)]
        score = torch.zeros(active.shape)
        pos, index = (torch.tensor(rows[name].to_numpy()) for name in ("pos", "index"))
        at = torch.zeros_like(index) if part[2] == "error" else index
        score[pos, at] = torch.tensor(rows["influence"].to_numpy(), dtype=score.dtype)
        found[part] = score
    return found
