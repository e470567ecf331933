"""Run token ids through a Hugging Face model and bring back named tensors: the one user of nnsight.

Both functions leave the model as it was: training flag and attention implementation are put back
even after an exception, and no parameter is touched.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from replacement.families.family import Family
from replacement.precision import KeepDouble

Sublayer = tuple[int, str]
"""Number of the layer, and "attn" or "mlp"; (-1, "") for the embeddings.

The residual stream itself: "resid" where it enters the layer (or, of the number of layers, the
final norm), "mid" where it enters the layer's MLP.
"""
Substitute = Callable[
    [Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos d_model"]],
    Float[Tensor, "batch pos d_model"],
]
"""What stands in for a sublayer's output, from the stream it reads and the output it made.

Of the residual stream: what stands in for it, from itself twice.
"""


_LAST_LOGITS: dict[str, Any] = {"logits_to_keep": 1, "use_cache": False}
"""Logits of a whole prompt cost as much as several layers, and few are ever asked for."""


@dataclass(frozen=True)
class LayerRecord:
    """What one layer did in one run."""

    residual: Float[Tensor, "pos d_model"]
    """The residual stream entering the layer, before it was replaced."""
    attention: Float[Tensor, "pos d_model"]
    """What attention added to the stream, after a norm that follows it."""
    attention_raw: Float[Tensor, "pos d_model"]
    """What attention itself computed; the same where no norm follows."""
    mlp: Float[Tensor, "pos d_model"]
    """What the MLP added to the stream."""
    mlp_raw: Float[Tensor, "pos d_model"]
    mixed: Float[Tensor, "pos head_times_d_head"]
    """What the heads added up by their patterns, which W_O reads."""
    pattern: Float[Tensor, "head query key"]


@dataclass(frozen=True)
class Record:
    """One forward pass of the original model."""

    layers: list[LayerRecord]
    residual: Float[Tensor, "pos d_model"]
    """The residual stream entering the final norm, before it was replaced."""
    unembedded: Float[Tensor, "pos d_model"]
    """What the unembedding reads."""
    next_logits: Float[Tensor, " d_vocab"]
    """The model's logits at the last position."""


@dataclass(frozen=True)
class Edited:
    """A batch of edited forward passes."""

    streams: dict[int | Sublayer, Float[Tensor, "batch pos d_model"]]
    unembedded: Float[Tensor, "batch pos d_model"]
    next_logits: Float[Tensor, "batch d_vocab"]


class Tracer:
    """A Hugging Face model wrapped once, ready to be run and edited."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model = model
        self.family = family
        self.parallel = family.parallel(model.config)
        self._wrapped: Any = nnsight.NNsight(model)
        self._below: Any = _at(self._wrapped, family.layers.rpartition(".")[0])
        """All but the unembedding."""

    def record(
        self, token_ids: Int[Tensor, "batch pos"], substitutes: Mapping[Sublayer, Substitute]
    ) -> list[Record]:
        """Return the named tensors of one forward pass over unpadded prompts, prompt by prompt.

        The outputs of sublayers named in `substitutes` are replaced, and recorded, as they say.
        """
        family, saved, ends = self.family, [], []
        last = (len(_at(self.model, family.layers)), "resid")
        with self._undisturbed(), torch.no_grad(), self._wrapped.trace(token_ids, **_LAST_LOGITS):
            for number, layer in enumerate(_at(self._wrapped, family.layers)):
                arriving = entering = layer.input.save()
                if (number, "resid") in substitutes:
                    layer.input = entering = substitutes[number, "resid"](arriving, arriving)
                attention = _at(layer, family.attention)
                mixed = _at(attention, family.projection).input.save()
                pattern = attention.output[1].save()
                raw = attention.output[0].save()
                written: Any = raw
                if family.attention_post_norm is not None:
                    written = _at(layer, family.attention_post_norm).output
                if (number, "attn") in substitutes:
                    written = substitutes[number, "attn"](entering, raw)
                    _put(layer, family.attention, family.attention_post_norm, written)
                added_by_heads: Any = written.save()
                if (number, "mid") in substitutes:
                    between = entering + written
                    written = substitutes[number, "mid"](between, between) - entering
                    _put(layer, family.attention, family.attention_post_norm, written)
                between = entering if self.parallel else entering + written
                mlp_raw = _at(layer, family.mlp).output.view_as(entering).save()
                added: Any = mlp_raw
                if family.mlp_post_norm is not None:
                    added = _at(layer, family.mlp_post_norm).output
                if (number, "mlp") in substitutes:
                    added = substitutes[number, "mlp"](between, mlp_raw)
                    _put(layer, family.mlp, family.mlp_post_norm, added)
                saved.append((arriving, added_by_heads, raw, added.save(), mlp_raw, mixed, pattern))
            final_norm = _at(self._wrapped, family.final_norm)
            ends.append(final_norm.input.save())
            if last in substitutes:
                final_norm.input = substitutes[last](ends[0], ends[0])
            ends.append(self._below.output.last_hidden_state.save())
            ends.append(self._wrapped.output.logits.save())
        return [
            Record(
                [LayerRecord(*(tensor[row] for tensor in tensors)) for tensors in saved],
                residual=ends[0][row],
                unembedded=ends[1][row],
                next_logits=ends[2][row, -1],
            )
            for row in range(len(token_ids))
        ]

    def run_edited(
        self,
        token_ids: Int[Tensor, "batch pos"],
        edits: Mapping[Sublayer, Substitute],
        stages: Set[int | Sublayer],
        *,
        past: Any = None,
    ) -> Edited:
        """Run a batch of prompts of one length, sublayers replaced as `edits` say.

        `edits[-1, ""]` is of the embeddings. The model reacts freely. Kept is the residual stream
        of the `stages` asked for: 2·layer before attention, 2·layer + 1 after it, 2·n_layers before
        the final norm; or, by the place (layer, "resid" | "mid"), before it was replaced there.
        `past`: keys and values of the tokens before (`cache`), to which those of these are added.
        """
        family, saved, blocks = self.family, {}, _at(self._wrapped, self.family.layers)
        settings = _LAST_LOGITS
        if past is not None:
            settings = settings | {"past_key_values": past, "use_cache": True}

        def behind(place: Sublayer, stage: int, stream: Any) -> Any:
            if place in stages:
                saved[place] = stream.save()
            if place in edits:
                stream = edits[place](stream, stream)
            if stage in stages:
                saved[stage] = stream.save()
            return stream

        with self._undisturbed(), torch.no_grad(), self._wrapped.trace(token_ids, **settings):
            for number, layer in enumerate(blocks):
                if number == 0 and (-1, "") in edits:
                    layer.input = edits[-1, ""](layer.input, layer.input)
                layer.input = entering = behind((number, "resid"), 2 * number, layer.input)
                raw: Any = _at(layer, family.attention).output[0]
                written: Any = raw
                if family.attention_post_norm is not None:
                    written = _at(layer, family.attention_post_norm).output
                if (number, "attn") in edits:
                    written = edits[number, "attn"](entering, raw)
                middle = behind((number, "mid"), 2 * number + 1, entering + written)
                if (number, "mid") in edits:
                    written = middle - entering
                if (number, "attn") in edits or (number, "mid") in edits:
                    _put(layer, family.attention, family.attention_post_norm, written)
                between = entering if self.parallel else middle
                if (number, "mlp") in edits:
                    raw = _at(layer, family.mlp).output.view_as(entering)
                    if family.mlp_post_norm is not None:
                        _at(layer, family.mlp_post_norm).output  # noqa: B018  (in order)
                    _put(
                        layer, family.mlp, family.mlp_post_norm, edits[number, "mlp"](between, raw)
                    )
            final_norm, end = _at(self._wrapped, family.final_norm), len(blocks)
            final_norm.input = behind((end, "resid"), 2 * end, final_norm.input)
            unembedded = self._below.output.last_hidden_state.save()
            scores = self._wrapped.output.logits.save()
        return Edited(saved, unembedded, scores[:, -1])

    def logits(
        self,
        unembedded: Float[Tensor, "pos d_model"],
        next_logits: Float[Tensor, " d_vocab"],
    ) -> Float[Tensor, "pos d_vocab"]:
        """Return the model's logits at every position of a pass, from what its unembedding read.

        The model's own code from there on, so scaled and capped as it does; at the last position
        `next_logits`, which the pass gave.
        """
        ids = torch.zeros(1, len(unembedded), dtype=torch.long, device=unembedded.device)
        with self._undisturbed(), torch.no_grad(), self._wrapped.trace(ids):
            body = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=unembedded[None])
            self._below.skip(body)
            found = self._wrapped.output.logits.save()
        found[0, -1] = next_logits
        return found[0]

    def cache(self) -> Any:
        """Return an empty store of keys and values, for runs that go on from one another."""
        model: Any = self.model
        return DynamicCache(config=model.config)

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Evaluation mode and eager attention (whose patterns can be read) for one run."""
        model: Any = self.model
        double = next(model.parameters()).dtype == torch.float64
        training = [module for module in model.modules() if module.training]
        implementation = model.config._attn_implementation
        try:
            model.eval()
            model.config._attn_implementation = "eager"
            with KeepDouble() if double else contextlib.nullcontext():
                yield
        finally:
            model.config._attn_implementation = implementation
            for module in training:
                module.training = True


def _at(module: Any, path: str) -> Any:
    """Return the submodule (or wrapped submodule) at a dotted path."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _put(layer: Any, path: str, post_norm: str | None, written: Any) -> None:
    """Let `written` be what a sublayer adds to the residual stream."""
    module = _at(layer, path if post_norm is None else post_norm)
    if isinstance(module.output, tuple):
        module.output = (written, *module.output[1:])
    else:
        module.output = written.view_as(module.output)
