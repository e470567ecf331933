"""Run token ids through a Hugging Face model and bring back named tensors: the one user of nnsight.

Both functions leave the model as it was: training flag and attention implementation are put back
even after an exception, and no parameter is touched.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from replacement.families import Family


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

    def record(self, token_ids: Int[Tensor, " pos"]) -> Record:
        """Return the named tensors of one forward pass over one unpadded prompt."""
        family, saved, ends = self.family, [], []
        with self._undisturbed(), torch.no_grad(), self._wrapped.trace(token_ids[None]):
            for layer in _at(self._wrapped, family.layers):
                entering = layer.input.save()
                attention = _at(layer, family.attention).output
                mlp = _at(layer, family.mlp).output.save()
                saved.append((entering, attention[0].save(), mlp, attention[1].save()))
            ends.append(_at(self._wrapped, family.final_norm).input.save())
            ends.append(self._wrapped.output.logits.save())
        layers = [LayerRecord(*(tensor[0] for tensor in tensors)) for tensors in saved]
        return Record(layers, residual=ends[0][0], logits=ends[1][0])

    def run_edited(
        self,
        token_ids: Int[Tensor, " pos"],
        additions: Mapping[tuple[int, str], Float[Tensor, "batch pos d_model"]],
        read: Callable[[int, Float[Tensor, "batch pos d_model"]], None],
    ) -> None:
        """Run a batch of copies of a prompt, adding vectors to the output of sublayers.

        `additions[layer, "attn" | "mlp"]` is added to that sublayer's output, `additions[-1, ""]`
        to the embeddings, one row of the batch per edit; the model reacts freely. `read(stage, x)`
        is called with the residual stream of every stage: 2·layer before attention, 2·layer + 1
        before the MLP, 2·n_layers before the final norm.
        """
        family, residuals = self.family, []
        batch = max(addition.shape[0] for addition in additions.values())
        copies = token_ids[None].expand(batch, -1)
        with self._undisturbed(), torch.no_grad(), self._wrapped.trace(copies):
            for number, layer in enumerate(_at(self._wrapped, family.layers)):
                if number == 0 and (-1, "") in additions:
                    layer.input = layer.input + additions[-1, ""]
                entering = layer.input.save()
                attention = _at(layer, family.attention)
                if (number, "attn") in additions:
                    changed = attention.output[0] + additions[number, "attn"]
                    attention.output = (changed, *attention.output[1:])
                between = (entering + attention.output[0]).save()
                mlp = _at(layer, family.mlp)
                if (number, "mlp") in additions:
                    mlp.output = mlp.output + additions[number, "mlp"]
                residuals.append((entering, between))
            last = _at(self._wrapped, family.final_norm).input.save()
        for number, (entering, between) in enumerate(residuals):
            read(2 * number, entering)
            read(2 * number + 1, between)
        read(2 * len(residuals), last)

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
