"""What one layer of a recorded run did: the values that are held, the nodes, and what they miss."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from replacement.layers import Active


@dataclass(frozen=True, eq=False)
class AttentionRun:
    """One attention layer, read as heads, as Lorsa heads, or as features of its output."""

    pattern: Float[Tensor, "head query key"]
    """Of the model's heads, or of Lorsa's query-key heads."""
    scale: Float[Tensor, " pos"]
    """Denominators of the norm before it."""
    mixed: Float[Tensor, "pos head d_head"] | None
    """Every head's pattern-weighted values: its output before W_O. None for Lorsa."""
    active: Active | None
    """Active Lorsa heads or features; None where the heads are the nodes."""
    output: Float[Tensor, "pos d_model"]
    """All nodes together with the write bias, as they join the residual stream."""
    error: Float[Tensor, "pos d_model"]
    post_scale: Float[Tensor, " pos"] | None = None
    """Denominators of the norm after it, where there is one that the nodes write through."""
    raw: Float[Tensor, "pos d_model"] | None = None
    """What entered that norm, where there is one; of a replacement run the same as `raw_output`."""
    raw_output: Float[Tensor, "pos d_model"] | None = None
    """What of it the nodes and the write bias make."""


@dataclass(frozen=True, eq=False)
class MLPRun:
    """One MLP, read as features or neurons."""

    scale: Float[Tensor, " pos"]
    """Denominators of the norm before it; 1 where features read the stream before that norm."""
    active: Active
    skip_output: Float[Tensor, "pos d_model"] | None
    output: Float[Tensor, "pos d_model"]
    """Features, decoder bias and skip together, as they join the residual stream."""
    error: Float[Tensor, "pos d_model"]
    post_scale: Float[Tensor, " pos"] | None = None
    """Denominators of the norm after it, where there is one that the nodes write through."""
    raw: Float[Tensor, "pos d_model"] | None = None
    """What entered that norm, where there is one; of a replacement run the same as `raw_output`."""
    raw_output: Float[Tensor, "pos d_model"] | None = None
    """What of it the nodes and the write bias make."""


@dataclass(frozen=True, eq=False)
class LayerRun:
    """One block of the model in one run."""

    attention: AttentionRun
    mlp: MLPRun


@dataclass(frozen=True, eq=False)
class StreamRun:
    """The residual stream at one stage, read as features."""

    entering: Float[Tensor, "pos d_model"]
    """The stream in front of the autoencoder."""
    active: Active
    output: Float[Tensor, "pos d_model"]
    """Features and decoder bias together: what stands in for the stream."""
    error: Float[Tensor, "pos d_model"]
