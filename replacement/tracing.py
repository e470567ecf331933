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

from replacement.families import Family

Sublayer = tuple[int, str]
"""Number of the layer, and "attn" or "mlp"; (-1, "") for the embeddings."""
Substitute = Callable[
    [Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos d_model"]],
    Float[Tensor, "batch pos d_model"],
]
"""What stands in for a sublayer's output, from the stream it reads and the output it made."""


@dataclass(frozen=True)
class LayerRecord:
    """What one layer did in one run, batch axis removed."""

    residual: Float[Tensor, "pos d_model"]
    """The residual stream entering the layer."""
    attention: Float[Tensor, "pos d_model"]
    """What attention added."""
    mlp: Float[Tensor, "pos d_model"]
    """What the MLP added."""
    pattern: Float[Tensor, "head query key"]


@dataclass(frozen=True)
class Record:
    """One forward pass of the original model."""

    layers: list[LayerRecord]
    residual: Float[Tensor, "pos d_model"]
    """The residual stream entering the final norm."""
    logits: Float[Tensor, "pos d_vocab"]


class Tracer:
    """A Hugging Face model wrapped once, ready to be run and edited."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        self.model = model
        self.family = family
        self._wrapped: Any = nnsight.NNsight(model)

    def record(
        self, token_ids: Int[Tensor, " pos"], substitutes: Mapping[Sublayer, Substitute]
    ) -> Record:
        """Return the named tensors of one forward pass over one unpadded prompt.

        The outputs of sublayers named in `substitutes` are replaced, and recorded, as they say.
        """
        family, saved, ends = self.family, [], []
        with self._undisturbed(), torch.no_grad(), self._wrapped.trace(token_ids[None]):
            for number, layer in enumerate(_at(self._wrapped, family.layers)):
                entering = layer.input.save()
                attention = _at(layer, family.attention)
                pattern = attention.output[1].save()
                written: Any = attention.output[0]
                if (number, "attn") in substitutes:
                    written = substitutes[number, "attn"](entering, written)
                    attention.output = (written, *attention.output[1:])
                mlp = _at(layer, family.mlp)
                added: Any = mlp.output
                if (number, "mlp") in substitutes:
                    added = substitutes[number, "mlp"](entering + written, added)
                    mlp.output = added
                saved.append((entering, written.save(), added.save(), pattern))
            ends.append(_at(self._wrapped, family.final_norm).input.save())
            ends.append(self._wrapped.output.logits.save())
        layers = [LayerRecord(*(tensor[0] for tensor in tensors)) for tensors in saved]
        return Record(layers, residual=ends[0][0], logits=ends[1][0])

    def run_edited(
        self,
        token_ids: Int[Tensor, " pos"],
        additions: Mapping[Sublayer, Float[Tensor, "batch pos d_model"]],
        stages: Set[int],
        substitutes: Mapping[Sublayer, Substitute],
    ) -> dict[int, Float[Tensor, "batch pos d_model"]]:
        """Run a batch of copies of a prompt, adding vectors to the output of sublayers.

        `additions[layer, "attn" | "mlp"]` is added to that sublayer's output (or to what
        `substitutes` puts in its place), `additions[-1, ""]` to the embeddings, one row of the
        batch per edit; the model reacts freely. Returned is the residual stream of the `stages`
        asked for: 2·layer before attention, 2·layer + 1 before the MLP, 2·n_layers before the final
        norm.
        """
        family, saved, blocks = self.family, {}, _at(self._wrapped, self.family.layers)
        batch = max(addition.shape[0] for addition in additions.values())
        copies = token_ids[None].expand(batch, -1)
        one = {"logits_to_keep": 1}  # nobody reads the logits

        def changed(place: Sublayer, stream: Any, output: Any) -> Any:
            if place in substitutes:
                output = substitutes[place](stream, output)
            return output + additions[place] if place in additions else output

        with self._undisturbed(), torch.no_grad(), self._wrapped.trace(copies, **one):
            for number, layer in enumerate(blocks):
                if number == 0 and (-1, "") in additions:
                    layer.input = layer.input + additions[-1, ""]
                entering = layer.input
                attention = _at(layer, family.attention)
                written = changed((number, "attn"), entering, attention.output[0])
                attention.output = (written, *attention.output[1:])
                between = entering + written
                if 2 * number in stages:
                    saved[2 * number] = entering.save()
                if 2 * number + 1 in stages:
                    saved[2 * number + 1] = between.save()
                mlp = _at(layer, family.mlp)
                mlp.output = changed((number, "mlp"), between, mlp.output)
            if 2 * len(blocks) in stages:
                saved[2 * len(blocks)] = _at(self._wrapped, family.final_norm).input.save()
        return saved

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Evaluation mode and eager attention (whose patterns can be read) for one run."""
        model: Any = self.model
        training = [module for module in model.modules() if module.training]
        implementation = model.config._attn_implementation
        try:
            model.eval()
            model.config._attn_implementation = "eager"
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
