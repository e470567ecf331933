"""The held linear map of a run: every sublayer as nodes that read and write the residual stream.

With patterns, norm denominators and gates at the run's values each sublayer is affine. Nothing here
forms a Jacobian or uses autograd.
"""

from collections.abc import Sequence

from replacement.held.attention import HeldAttentionSAE, HeldLorsa
from replacement.held.features import HeldFeatures
from replacement.held.heads import HeadPassage, HeldHeads
from replacement.held.mlp import HeldMLP
from replacement.held.passing import Cone, Passage, Scratch
from replacement.held.sublayer import Gate, Gradients, Joint, NodeRows, Reads, Step, Sublayer
from replacement.layer_run import LayerRun
from replacement.layers import Lorsa
from replacement.weights import LayerWeights


def held_sublayers(layers: Sequence[LayerRun], weights: Sequence[LayerWeights]) -> list[Sublayer]:
    """Return the sublayers of a recorded run in the order they write."""
    sublayers: list[Sublayer] = []
    for number, (layer, block) in enumerate(zip(layers, weights, strict=True)):
        sublayers += [_held_attention(number, layer, block), HeldMLP(number, layers, weights)]
    return sublayers


def _held_attention(number: int, layer: LayerRun, block: LayerWeights) -> Sublayer:
    if block.attention is None:
        return HeldHeads(number, layer.attention, block)
    if isinstance(block.attention, Lorsa):
        return HeldLorsa(number, layer.attention, block.attention, block)
    return HeldAttentionSAE(number, layer.attention, block.attention, block)


__all__ = [
    "Cone",
    "Gate",
    "Gradients",
    "HeadPassage",
    "HeldAttentionSAE",
    "HeldFeatures",
    "HeldHeads",
    "HeldLorsa",
    "HeldMLP",
    "Joint",
    "NodeRows",
    "Passage",
    "Reads",
    "Scratch",
    "Step",
    "Sublayer",
    "held_sublayers",
]
