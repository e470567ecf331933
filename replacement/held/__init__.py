"""The held linear map of a run: every sublayer as nodes that read and write the residual stream.

With patterns, norm denominators and gates at the run's values each sublayer is affine. Nothing here
forms a Jacobian or uses autograd.
"""

from collections.abc import Mapping, Sequence

from replacement.held.attention import HeldAttentionSAE, HeldLorsa
from replacement.held.features import FeatureNodes, HeldFeatures
from replacement.held.heads import HeadNodes, HeadPassage, HeldHeads
from replacement.held.mlp import HeldHalves, HeldMLP, SkipPassage
from replacement.held.passing import Cone, LowRank, Passage, Scratch
from replacement.held.stream import NAMES, HeldStream
from replacement.held.sublayer import (
    Gate,
    Gradients,
    Joint,
    NodeRows,
    Reader,
    Reads,
    Step,
    Sublayer,
)
from replacement.layer_run import LayerRun, StreamRun
from replacement.layers import HalvedNeurons, Lorsa
from replacement.weights import LayerWeights, ModelWeights


def held_sublayers(
    layers: Sequence[LayerRun], streams: Mapping[int, StreamRun], weights: ModelWeights
) -> list[Sublayer]:
    """Return the sublayers of a recorded run in the order they write.

    `streams`: the stages at which the residual stream is read as features.
    """
    sublayers: list[Sublayer] = [
        HeldStream(stage, run, weights.streams[stage]) for stage, run in streams.items()
    ]
    for number, (layer, block) in enumerate(zip(layers, weights.layers, strict=True)):
        sublayers.append(_held_attention(number, layer, block))
        mlp = HeldHalves if isinstance(block.mlp, HalvedNeurons) else HeldMLP
        sublayers.append(mlp(number, layers, weights.layers))
    return sorted(sublayers, key=lambda layer: (layer.writes_at, layer.replaces))


def writing(sublayers: Sequence[Sublayer], stage: int) -> list[tuple[Sublayer, list[int]]]:
    """Return who wrote what the residual stream holds at `stage`, and at which stages.

    What was written before the stream was replaced is not among it.
    """
    replaced = max(
        (layer.writes_at for layer in sublayers if layer.replaces and layer.writes_at <= stage),
        default=-1,
    )
    found = []
    for layer in sublayers:
        first = replaced if layer.replaces else replaced + 1
        stages = [own for own in layer.write_stages if first <= own <= stage]
        if stages:
            found.append((layer, stages))
    return found


def _held_attention(number: int, layer: LayerRun, block: LayerWeights) -> Sublayer:
    if block.attention is None:
        return HeldHeads(number, layer.attention, block)
    if isinstance(block.attention, Lorsa):
        return HeldLorsa(number, layer.attention, block.attention, block)
    return HeldAttentionSAE(number, layer.attention, block.attention, block)


__all__ = [
    "NAMES",
    "Cone",
    "FeatureNodes",
    "Gate",
    "Gradients",
    "HeadNodes",
    "HeadPassage",
    "HeldAttentionSAE",
    "HeldFeatures",
    "HeldHalves",
    "HeldHeads",
    "HeldLorsa",
    "HeldMLP",
    "HeldStream",
    "Joint",
    "LowRank",
    "NodeRows",
    "Passage",
    "Reader",
    "Reads",
    "Scratch",
    "SkipPassage",
    "Step",
    "Sublayer",
    "held_sublayers",
    "writing",
]
