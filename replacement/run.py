"""One recorded prompt: what was active, what was held, and what of it can be explained."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.explaining import direction_target, feature_target, logit_target, score_target
from replacement.held import NAMES, HeldFeatures, Sublayer, held_sublayers
from replacement.layer_run import LayerRun, StreamRun
from replacement.notebook import as_html
from replacement.prompts import single_token, whole_number
from replacement.scores import SIDES, held_score, rest_weights, scores_of
from replacement.target import Target, sum_of
from replacement.weights import ModelWeights

_PLURALS = {"feature": "features", "neuron": "neurons", "lorsa": "Lorsa heads"}


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
    errors: bool
    """False for a replacement run: layers stood in for what they replace, nothing is left over."""
    unembedded: Float[Tensor, "pos d_model"]
    """What the model's unembedding read."""
    next_logits: Float[Tensor, " d_vocab"]
    """The model's logits at the last position."""
    token_writes: Float[Tensor, "pos d_model"]
    """The residual entering layer 0 less the position embedding."""
    position_writes: Float[Tensor, "pos d_model"]
    layers: list[LayerRun]
    residuals: list[Float[Tensor, "pos d_model"]]
    """The residual stream of every stage (two a layer, and the one entering the final norm).

    Where features replace it in a replacement run: the stream behind them."""
    final_scale: Float[Tensor, " pos"]
    streams: Mapping[int, StreamRun] = field(default_factory=dict)
    """Stages at which the residual stream is read as features."""

    @cached_property
    def logits(self) -> Float[Tensor, "pos d_vocab"]:
        """The model's logits at every position, computed when first asked for."""
        return self.model.tracer.logits(self.unembedded, self.next_logits)

    def logits_at(self, pos: int) -> Float[Tensor, " d_vocab"]:
        """Return the model's logits at one position, from 0; those of the last are at hand."""
        return self.next_logits if pos == len(self.tokens) - 1 else self.logits[pos]

    @cached_property
    def sublayers(self) -> list[Sublayer]:
        """The held linear map, sublayer by sublayer, in the order they write."""
        return held_sublayers(self.layers, self.streams, self.weights)

    def place(self, layer: int, name: str) -> int:
        """Return which of the `sublayers` has that layer and name; KeyError if there is none."""
        for number, one in enumerate(self.sublayers):
            if (one.layer, one.name) == (layer, name):
                return number
        raise KeyError((layer, name))

    def sublayer(self, layer: int, name: str) -> Sublayer:
        """Return the sublayer of a layer and name; KeyError if there is none."""
        return self.sublayers[self.place(layer, name)]

    @torch.no_grad()
    def logit(self, token: str | SupportsIndex, pos: SupportsIndex = -1) -> Target:
        """Return the raw logit of `token` at `pos` as a target, before any soft-cap.

        `.centered()` of it subtracts the mean over the vocabulary. Raises ValueError where `token`
        is not exactly one token, IndexError for a position outside the prompt.
        """
        number = single_token(token, self.model.tokenizer, self.weights.d_vocab)
        where = self._position(pos)
        name = self.model.token_text(number)
        centered = logit_target(self, "centered_logit", number, where, f"centered_logit({name})")
        raw = logit_target(self, "logit", number, where, f"logit({name})")
        return dataclasses.replace(raw, centered_form=centered)

    @torch.no_grad()
    def feature(
        self,
        layer: SupportsIndex,
        pos: SupportsIndex,
        index: SupportsIndex,
        sublayer: str | None = None,
    ) -> Target:
        """Return the pre-activation of a feature, neuron or Lorsa head as a target, active or not.

        `sublayer`: "mlp" (the default), "attn" (a Lorsa head, or a feature of attention's output),
        "resid" (of the stream entering the layer; `n_layers`: the final norm) or "mid" (entering
        its MLP). Raises IndexError for a layer, position or index that does not exist, ValueError
        for a sublayer without features.
        """
        name = "mlp" if sublayer is None else sublayer
        last = self.weights.n_layers if name == NAMES[0] else None
        where, depth = self._position(pos), self._layer(layer, last)
        found = [part for part in self.sublayers if (part.layer, part.name) == (depth, name)]
        held = found[0] if found else None
        if not isinstance(held, HeldFeatures):
            parts = [part for part in self.sublayers if part.layer == depth]
            there = [f'"{part.name}"' for part in parts if isinstance(part, HeldFeatures)]
            raise ValueError(
                f'run.feature(sublayer={sublayer!r}): "mlp", "attn" where attention is read '
                'through Lorsa or an autoencoder, "resid" or "mid" where the residual stream is; '
                f"layer {depth} has features in {' and '.join(there) or 'none of them'}."
            )
        number, count = whole_number(index), held.features.n_features
        if number is None or not 0 <= number < count:
            raise IndexError(
                f"run.feature(index={index!r}): layer {depth} has {count} "
                f"{_PLURALS[held.node_kind]}, numbered from 0."
            )
        return feature_target(self, held, where, number)

    @torch.no_grad()
    def attention_score(
        self,
        layer: SupportsIndex,
        head: SupportsIndex,
        query: SupportsIndex = -1,
        key: SupportsIndex = 0,
        *,
        side: str = "both",
        contrast: bool = False,
    ) -> Target:
        """Return how strongly a head at `query` looks at `key`, before the softmax, as a target.

        `score = scale · q · k`, any soft-cap left off; q/k norms and rotary embeddings as in the
        model. `head`: one of the model's heads, or of Lorsa's query-key heads where the layer is
        read through Lorsa (Lorsa head `i` uses number `i // group`). The score is bilinear:
        `side="query"` explains it by what was written at the query, the key fixed; "key" the other
        way round; "both" is half of each. All three have the score as their value.

        A softmax follows, so keys compete: the difference of two keys' scores is what decides
        between them. With `contrast` the target is the score less the mean score of the other keys,
        weighted as the softmax weighs them: what makes the head look at this key rather than
        elsewhere.

        Raises IndexError for a layer, head or position that does not exist, ValueError for a key
        that the query does not see, an unknown side, or a contrast where no other key is seen.
        """
        if side not in SIDES:
            raise ValueError(f"run.attention_score(side={side!r}): one of {', '.join(SIDES)}.")
        depth, number, place, where = self.score_place(layer, head, query, key)
        heads = self.weights.query_key(depth)
        weights = {where: 1.0}
        if contrast:
            scores = scores_of(self, depth, number, place)
            weights = rest_weights(scores, where, heads.soft_cap)
            if len(weights) == 1:
                raise ValueError(
                    f"run.attention_score(contrast=True): position {place} sees only position "
                    f"{where}, so there is nothing to contrast it with. Leave contrast out."
                )
        parts = [
            weight * score_target(self, held_score(self, depth, number, place, pos), side)
            for pos, weight in weights.items()
        ]
        label = parts[0].label.replace("score(", "contrast(") if contrast else parts[0].label
        return dataclasses.replace(sum_of(parts), label=label.removeprefix("1·"))

    def score_place(
        self, layer: SupportsIndex, head: SupportsIndex, query: SupportsIndex, key: SupportsIndex
    ) -> tuple[int, int, int, int]:
        """Return layer, head, query and key of a score as plain numbers from 0.

        Raises IndexError or ValueError as `attention_score`.
        """
        depth, place, where = self._layer(layer), self._position(query), self._position(key)
        heads, number = self.weights.query_key(depth), whole_number(head)
        if number is None or not 0 <= number < heads.n_heads:
            raise IndexError(
                f"run.attention_score(head={head!r}): layer {depth} has {heads.n_heads} query-key "
                "heads, numbered from 0."
            )
        if not heads.sees(place, where):
            window = "" if heads.window is None else f" (a window of {heads.window} keys)"
            raise ValueError(
                f"run.attention_score(query={query!r}, key={key!r}): position {place} does not see "
                f"position {where}{window}. Give a key at or before the query."
            )
        return depth, number, place, where

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
        return direction_target(self, vector, depth, where)

    def edited(self, edits: Any, mode: Any = "free") -> Any:
        """Return this run under edits: `.logits`, and `.value(target)` of any target of the run.

        `edits`: a list of `Set`, `Scale`, `Ablate`, `Add` and `SetPattern` (docs/edits.md). `mode`:
        "free", the real model reacts; "patterns", attention patterns are held at those of the run
        and the rest reacts; "held", norm denominators and gates are held too, so that effects are
        linear and attribution predicts them. Without edits all three are the run itself.

        Raises TypeError, ValueError or IndexError, before anything runs, for a node or position
        that does not exist, a mean over no runs, two edits of one node, and values that are not
        finite or of the wrong shape.

        >>> from circuits import Node, Scale, load
        >>> run = load("four-tasks").run(
        ...     "When Mary and John went to the store, John gave a drink to"
        ... )
        >>> off = run.edited([Scale(Node("lorsa", layer=3, index=5, pos=-1), 0)])
        >>> off.logits.shape == run.logits.shape
        True
        """
        return self.model.edited(self, edits, mode)

    def target(self, terms: list[dict[str, Any]]) -> Target:
        """Return the target that `Term.as_data` described, made anew from this run."""
        if not terms:
            raise ValueError(
                "run.target([]): at least one term is needed, as Term.as_data gives it."
            )
        return sum_of([self._of_term(**term) for term in terms])

    def _of_term(
        self,
        *,
        kind: str,
        weight: float,
        layer: int,
        pos: int,
        index: int,
        vector: Any,
        sublayer: str = "",
        key: int = -1,
        side: str = "",
    ) -> Target:
        match kind:
            case "logit":
                single = self.logit(index, pos)
            case "centered_logit":
                single = self.logit(index, pos).centered()
            case "feature":
                single = self.feature(layer, pos, index, sublayer or None)
            case "attention_score":
                single = self.attention_score(layer, index, pos, key, side=side)
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
        nodes = sum(layer.n_nodes for layer in self.sublayers)
        kind = "" if self.errors else "replacement run, "
        return f"Run({kind}{len(self.tokens)} tokens, {nodes} active nodes: {self.prompt!r})"

    def _repr_html_(self) -> str:
        """What it is, and the likeliest next tokens."""
        chances = self.next_logits.softmax(-1)
        best = chances.topk(min(5, len(chances)))
        columns = {
            "next token": [self.model.token_text(token) for token in best.indices.tolist()],
            "probability": [f"{chance:.4f}" for chance in best.values.tolist()],
            "logit": [f"{logit:.4f}" for logit in self.next_logits[best.indices].tolist()],
        }
        return as_html(repr(self), columns)
