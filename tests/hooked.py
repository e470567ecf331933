"""A plain Hugging Face forward pass with PyTorch hooks: sublayers replaced, vectors taken out.

The oracle for replacement runs and for free knock-outs: nnsight and the library's own arithmetic
have no part in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from replacement.layers import AttentionSAE, FeatureLayer, Lorsa, ResidualSAE
from replacement.run import Run
from replacement.target import Target, Term
from tests.attribution.by_hand import (
    Sides,
    gate_by_hand,
    lorsa_by_hand,
    pattern_by_hand,
    sides_by_hand,
)
from tests.samples import Case, attentions_of, mlps_of, residuals_of

Place = tuple[int, str]
"""Number of the layer and "attn" or "mlp"; (-1, "") for the embeddings.

Of the residual stream "resid", where it enters the layer or final norm, and "mid" where the MLP.
"""


@dataclass
class Hooked:
    """What one hooked pass saw."""

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    entering: dict[int, Tensor] = field(default_factory=dict)
    """The stream entering every layer; under the number of layers, the final norm's."""
    front: dict[Place, Tensor] = field(default_factory=dict)
    """The stream of a place before it is replaced or anything is taken out there."""
    normed: dict[Place, Tensor] = field(default_factory=dict)
    """What every sublayer read."""
    wrote: dict[Place, Tensor] = field(default_factory=dict)
    """What the model's own sublayer made of it, before anything was replaced or taken out."""
    mixed: dict[int, Tensor] = field(default_factory=dict)
    """What every W_O read."""
    acted: dict[int, Tensor] = field(default_factory=dict)
    """Activations of every layer's neurons."""


@torch.no_grad()
def hooked_pass(
    model: Any,
    token_ids: Tensor,
    layers: Mapping[Place, FeatureLayer],
    lost: Mapping[Place, Tensor],
) -> Hooked:
    """Run a Hugging Face GPT-2 with `layers` in place of sublayers and `lost` taken out.

    `lost`: one row a position, subtracted from what a sublayer (or its replacement) wrote, from
    the embeddings, or from the stream (behind what replaces it).
    """
    base, seen, handles = model.transformer, Hooked(), []

    def on(module: Any, see: Callable[[Tensor, Any], Any], *, before: bool = False) -> None:
        if before:
            handles.append(module.register_forward_pre_hook(lambda _, given: see(given[0], None)))
        else:
            handles.append(module.register_forward_hook(lambda _, given, out: see(given, out)))

    def changed(place: Place, output: Tensor) -> Tensor:
        seen.wrote[place] = output[0]
        if place in layers:
            output = rebuilt(layers, place, seen)[None]
        return output - lost[place] if place in lost else output

    def behind(place: Place, x: Tensor) -> Tensor:
        seen.front[place] = x[0]
        if place in layers:
            layer = layers[place]
            x = (activations(layer, x[0], x[0]) @ layer.write + layer.write_bias)[None]
        return x - lost[place] if place in lost else x

    def entering(number: int) -> Callable[..., Any]:
        def see(_: Any, given: tuple[Any, ...]) -> Any:
            x = behind((number, "resid"), given[0])
            seen.entering[number] = x[0]
            return (x, *given[1:])

        return see

    def attended(number: int, written: Tensor) -> Tensor:
        x = seen.entering[number]
        return behind((number, "mid"), x + changed((number, "attn"), written)) - x

    def watch(number: int, block: Any) -> None:
        attn, mlp = (number, "attn"), (number, "mlp")
        handles.append(block.register_forward_pre_hook(entering(number)))
        on(block.ln_1, lambda _, y: seen.normed.update({attn: y[0]}))
        on(block.attn.c_proj, lambda x, _: seen.mixed.update({number: x[0]}), before=True)
        on(block.attn, lambda _, out: (attended(number, out[0]), *out[1:]))
        on(block.ln_2, lambda _, y: seen.normed.update({mlp: y[0]}))
        on(block.mlp.act, lambda _, out: seen.acted.update({number: out[0]}))
        on(block.mlp, lambda _, out: changed(mlp, out))

    on(base.drop, lambda _, out: out - lost[-1, ""] if (-1, "") in lost else None)
    for number, block in enumerate(base.h):
        watch(number, block)
    handles.append(base.ln_f.register_forward_pre_hook(entering(len(base.h))))
    try:
        seen.logits = model(token_ids[None]).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return seen


def layers_of(case: Case) -> dict[Place, FeatureLayer]:
    """Return the replacement layers of a case, made once more, by their places."""
    found: dict[Place, FeatureLayer] = {}
    for name, layers in (("attn", attentions_of(case)), ("mlp", mlps_of(case))):
        for number, layer in enumerate(layers or []):
            if layer is not None:
                found[number, name] = layer
    for stage, sae in enumerate(residuals_of(case) or []):
        if sae is not None:
            found[stage // 2, "mid" if stage % 2 else "resid"] = sae
    return found


def arriving_at(run: Run, stage: int) -> Tensor:
    """Return the residual stream of a stage in front of what replaces it there."""
    return run.streams[stage].entering if stage in run.streams else run.residuals[stage]


def lorsa_sides(lorsa: Lorsa, y: Tensor) -> tuple[Sides, Tensor]:
    """Return queries, keys and pattern of a Lorsa layer."""
    sides = sides_by_hand(lorsa.query_key, y)
    return sides, pattern_by_hand(sides, lorsa.query_key.scale, lorsa.query_key.window)


def pre_activations(layer: FeatureLayer, y: Tensor, wrote: Tensor) -> Tensor:
    """Return every pre-activation of a layer on a sublayer that read `y` and wrote `wrote`."""
    if isinstance(layer, Lorsa):
        return lorsa_by_hand(layer, y, lorsa_sides(layer, y)[1])
    read = wrote if isinstance(layer, AttentionSAE | ResidualSAE) else y
    return read @ layer.read.T + layer.read_bias


def activations(layer: FeatureLayer, y: Tensor, wrote: Tensor) -> Tensor:
    pre = pre_activations(layer, y, wrote)
    return gate_by_hand(layer, pre) * pre


def rebuilt(layers: Mapping[Place, FeatureLayer], place: Place, seen: Hooked) -> Tensor:
    """Return what the layers put in the place of a sublayer, all that write across included."""
    number, name = place
    layer, width = layers[place], seen.wrote[place].shape[-1]
    output = layer.write_bias
    for below in range(number + 1):
        writer = layers.get((below, name))
        start = (number - below) * width
        if writer is not None and start < writer.write.shape[1]:
            active = activations(writer, seen.normed[below, name], seen.wrote[below, name])
            output = output + active @ writer.write[:, start : start + width]
    return output if layer.skip is None else output + seen.normed[place] @ layer.skip.T


def measured(target: Target, model: Any, seen: Hooked, before: Hooked) -> float:
    """Return a target's value in a hooked pass; sides of scores that are fixed are of `before`."""
    return sum(
        term.weight * float(_term(target.run, model, term, seen, before)) for term in target.terms
    )


def _term(run: Run, model: Any, term: Term, seen: Hooked, before: Hooked) -> Tensor:
    match term.kind:
        case "logit":
            return seen.logits[term.pos, term.index]
        case "centered_logit":
            return seen.logits[term.pos, term.index] - seen.logits[term.pos].mean()
        case "direction":
            assert term.vector is not None
            return seen.entering[term.layer][term.pos] @ term.vector
        case "attention_score":
            query = before if term.side == "key" else seen
            key = before if term.side == "query" else seen
            return _score(run, model, term, query, key)
    place = (term.layer, term.sublayer)
    if term.sublayer in ("resid", "mid"):
        sae = run.weights.streams[2 * term.layer + (term.sublayer == "mid")]
        return pre_activations(sae, seen.front[place], seen.front[place])[term.pos, term.index]
    block = run.weights.layers[term.layer]
    layer = block.mlp if term.sublayer == "mlp" else block.attention
    assert layer is not None
    return pre_activations(layer, seen.normed[place], seen.wrote[place])[term.pos, term.index]


def _score(run: Run, model: Any, term: Term, query: Hooked, key: Hooked) -> Tensor:
    """scale · q · k, of Lorsa or from the packed weights of Hugging Face."""
    place, lorsa = (term.layer, "attn"), run.weights.layers[term.layer].attention
    if isinstance(lorsa, Lorsa):
        q = lorsa_sides(lorsa, query.normed[place])[0].query[term.index, term.pos]
        k = lorsa_sides(lorsa, key.normed[place])[0].key[term.index, term.key]
        return lorsa.query_key.scale * q @ k
    attention = model.transformer.h[term.layer].attn
    width = model.config.n_embd // model.config.n_head
    columns = slice(term.index * width, (term.index + 1) * width)
    q, k = (
        attention.c_attn(seen.normed[place])[pos].chunk(3)[part][columns]
        for part, (seen, pos) in enumerate(((query, term.pos), (key, term.key)))
    )
    return q @ k * width**-0.5
