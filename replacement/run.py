"""One recorded prompt: what was active, what was held, and what of it can be explained."""

from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.layers import Active
from replacement.prompts import single_token, whole_number
from replacement.target import Seed, Target, Term
from replacement.weights import ModelWeights


@dataclass(frozen=True, eq=False)
class LayerRun:
    """What one layer's two sublayers did, split into nodes, constants and errors."""

    pattern: Float[Tensor, "head query key"]
    attention_scale: Float[Tensor, " pos"]
    mixed: Float[Tensor, "pos head d_head"]
    """Every head's pattern-weighted values: its output before W_O."""
    attention_output: Float[Tensor, "pos d_model"]
    """All heads together with the output bias."""
    attention_error: Float[Tensor, "pos d_model"]
    mlp_scale: Float[Tensor, " pos"]
    active: Active
    skip_output: Float[Tensor, "pos d_model"] | None
    mlp_output: Float[Tensor, "pos d_model"]
    """Features, decoder bias and skip together: the reconstruction."""
    mlp_error: Float[Tensor, "pos d_model"]


@dataclass(frozen=True, eq=False)
class Run:
    """A prompt run once through the original model and read through its replacement layers.

    Axes: `pos` tokens, `d_model` residual stream. Made by `ReplacementModel.run`.
    """

    model: Any
    """The `ReplacementModel` it was made by."""
    weights: ModelWeights
    prompt: str | None
    """The text, None where token ids were given."""
    token_ids: Int[Tensor, " pos"]
    tokens: list[str]
    logits: Float[Tensor, "pos d_vocab"]
    token_writes: Float[Tensor, "pos d_model"]
    """The residual entering layer 0 less the position embedding."""
    position_writes: Float[Tensor, "pos d_model"]
    layers: list[LayerRun]
    residuals: list[Float[Tensor, "pos d_model"]]
    """The residual stream of every stage (two a layer, and the one entering the final norm)."""
    final_scale: Float[Tensor, " pos"]

    @torch.no_grad()
    def logit(self, token: str | SupportsIndex, pos: SupportsIndex = -1) -> Target:
        """Return the raw logit of `token` at `pos` as a target, before any soft-cap.

        `.centered()` of it subtracts the mean over the vocabulary. Raises ValueError where `token`
        is not exactly one token, IndexError for a position outside the prompt.
        """
        number = single_token(token, self.model.tokenizer, self.weights.d_vocab)
        where = self._position(pos)
        name = self.model.token_text(number)
        centered = self._logit_target("centered_logit", number, where, f"centered_logit({name})")
        raw = self._logit_target("logit", number, where, f"logit({name})")
        return Target(**{**vars(raw), "centered_form": centered})

    def _logit_target(self, kind: str, number: int, pos: int, label: str) -> Target:
        weights = self.weights
        row, value = weights.unembedding[number], self.logits[pos, number]
        bias = weights.unembedding_bias
        constant = 0.0 if bias is None else float(bias[number])
        if kind == "centered_logit":
            row, value = row - weights.mean_unembedding, value - self.logits[pos].mean()
            constant -= 0.0 if bias is None else float(bias.mean())
        norm = weights.final_norm
        return Target(
            run=self,
            label=label,
            value=float(value),
            bias=constant + float(norm.constant(row)),
            pos=pos,
            seeds=(Seed(2 * weights.n_layers, pos, norm.pull(row) / self.final_scale[pos]),),
            terms=(Term(kind, 1.0, weights.n_layers, pos, number),),
        )

    @torch.no_grad()
    def feature(self, layer: SupportsIndex, pos: SupportsIndex, index: SupportsIndex) -> Target:
        """Return the pre-activation of a feature or neuron as a target, active or not.

        Raises IndexError for a layer, position or index that does not exist.
        """
        where, depth = self._position(pos), self._layer(layer)
        block = self.weights.layers[depth]
        number = whole_number(index)
        if number is None or not 0 <= number < block.mlp.n_features:
            raise IndexError(
                f"run.feature(index={index!r}): layer {depth} has {block.mlp.n_features} "
                f"{block.mlp.kind}s, numbered from 0."
            )
        stage, norm, scale = 2 * depth + 1, block.mlp_norm, self.layers[depth].mlp_scale[where]
        y = norm.apply(self.residuals[stage][where][None], scale[None])[0]
        read = block.mlp.read[number]
        return Target(
            run=self,
            label=f"L{depth}.{block.mlp.kind[0]}{number}@{where}",
            value=float(block.mlp.pre_activation(y[None], number)),
            bias=float(norm.constant(read) + block.mlp.read_bias[number]),
            pos=where,
            seeds=(Seed(stage, where, norm.pull(read) / scale),),
            terms=(Term("feature", 1.0, depth, where, number),),
        )

    @torch.no_grad()
    def direction(self, vector: Any, layer: SupportsIndex, pos: SupportsIndex = -1) -> Target:
        """Return `vector` · the residual stream entering `layer` at `pos` as a target.

        `vector`: `d_model` numbers. `layer = n_layers` is the stream entering the final norm.
        Raises ValueError for a vector of the wrong width, IndexError for a layer or position that
        does not exist.
        """
        where, depth = self._position(pos), self._layer(layer, last=self.weights.n_layers)
        stream = self.residuals[2 * depth][where]
        vector = torch.as_tensor(vector, dtype=stream.dtype, device=stream.device).detach()
        if vector.shape != stream.shape or not torch.isfinite(vector).all():
            finite = "" if torch.isfinite(vector).all() else ", with NaN or infinite entries"
            raise ValueError(
                f"run.direction: a finite vector of {stream.shape[0]} numbers (d_model) is needed; "
                f"got shape {tuple(vector.shape)}{finite}."
            )
        return Target(
            run=self,
            label=f"direction@L{depth}",
            value=float(vector @ stream),
            bias=0.0,
            pos=where,
            seeds=(Seed(2 * depth, where, vector),),
            terms=(Term("direction", 1.0, depth, where, -1, vector),),
        )

    def target(self, terms: list[dict[str, Any]]) -> Target:
        """Return the target that `Term.as_data` described, made anew from this run."""
        if not terms:
            raise ValueError(
                "run.target([]): at least one term is needed, as Term.as_data gives it."
            )
        made = [self._of_term(**term) for term in terms]
        total = made[0]
        for other in made[1:]:
            total = total + other
        return total

    def _of_term(
        self, *, kind: str, weight: float, layer: int, pos: int, index: int, vector: Any
    ) -> Target:
        match kind:
            case "logit":
                single = self.logit(index, pos)
            case "centered_logit":
                single = self.logit(index, pos).centered()
            case "feature":
                single = self.feature(layer, pos, index)
            case "direction":
                single = self.direction(vector, layer, pos)
            case _:
                raise ValueError(f"{kind!r} is no kind of target; upgrade linear-circuits?")
        return single if weight == 1 else weight * single

    def _position(self, pos: SupportsIndex) -> int:
        n_pos = len(self.tokens)
        number = whole_number(pos)
        if number is None:
            raise TypeError(
                f"a position is a whole number, 0 to {n_pos - 1}, or -1 for the last; got {pos!r}."
            )
        if not -n_pos <= number < n_pos:
            raise IndexError(
                f"position {pos} is outside the prompt of {n_pos} tokens: "
                f"0 to {n_pos - 1}, or -1 for the last."
            )
        return number % n_pos

    def _layer(self, layer: SupportsIndex, last: int | None = None) -> int:
        end = self.weights.n_layers - 1 if last is None else last
        number = whole_number(layer)
        if number is None or not 0 <= number <= end:
            raise IndexError(f"layer {layer!r} does not exist here: 0 to {end}.")
        return number

    def __repr__(self) -> str:
        active = sum(len(layer.active) for layer in self.layers)
        return f"Run({len(self.tokens)} tokens, {active} active features: {self.prompt!r})"
