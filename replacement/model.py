"""A Hugging Face model together with what its MLPs and attention are read as."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from replacement.families import Family, family_of
from replacement.layers import FeatureLayer, JumpReLU
from replacement.prompts import token_ids_of, token_texts
from replacement.recording import run_of_record
from replacement.run import Run
from replacement.tracing import Tracer
from replacement.weights import read_weights


class ReplacementModel:
    """A language model whose runs can be recorded and made linear.

    The Hugging Face model computes what it computed before: its weights are viewed, not folded, and
    its training flag and attention implementation are as before after every run. (nnsight, which
    records the run, leaves a wrapper of `forward` on its modules that does nothing between runs.)
    """

    def __init__(
        self,
        hf_model: nn.Module,
        tokenizer: Any = None,
        mlps: Sequence[FeatureLayer] | None = None,
        *,
        name: str = "model in memory",
        read_as: dict[str, str] | None = None,
    ) -> None:
        """Raise ValueError for an unsupported architecture, NaN weights or layers that do not fit.

        `mlps`: one layer per MLP, or None for the model's own neurons. `name` and `read_as` (mlp,
        attention) are only remembered, for saved circuits to say what they came from.
        """
        self.family = family_of(hf_model)
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.name = name
        self.read_as = read_as or {
            "mlp": "neurons" if mlps is None else "given",
            "attention": "heads",
        }
        _check_finite(hf_model)
        if mlps is not None:
            _check_fit(mlps, hf_model, self.family)
            mlps = [_detached(layer) for layer in mlps]
        self.weights = read_weights(hf_model, self.family, mlps)
        self.tracer = Tracer(hf_model, self.family)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.unembedding.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.unembedding.device

    @property
    def n_context(self) -> int | None:
        """The longest prompt the model takes; None where positions are not learned."""
        positions = self.weights.position_embedding
        return None if positions is None else positions.shape[0]

    def run(self, prompt: Any) -> Run:
        """Return the recorded run of one prompt, given as text or as token ids.

        Text gets the special tokens its tokenizer adds; ids are taken as they are. Raises
        ValueError or TypeError for anything but one unpadded prompt within the model's context.
        """
        ids = token_ids_of(
            prompt, self.tokenizer, d_vocab=self.weights.d_vocab, n_context=self.n_context
        )
        with torch.no_grad():
            return run_of_record(
                self.tracer.record(ids.to(self.device)),
                self.weights,
                ids,
                model=self,
                prompt=prompt if isinstance(prompt, str) else None,
                tokens=token_texts(ids, self.tokenizer),
            )

    def token_text(self, token_id: int) -> str:
        """Return a token in quotes, or its id in brackets where there is no tokenizer."""
        if self.tokenizer is None:
            return f"[{token_id}]"
        return f'"{self.tokenizer.decode([token_id])}"'

    def __repr__(self) -> str:
        weights = self.weights
        return (
            f"ReplacementModel({self.name}: {weights.n_layers} layers, width {weights.d_model}, "
            f"mlp={self.read_as['mlp']}, attention={self.read_as['attention']}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        # a sum is finite unless a term is not (or it overflows, which the full test settles)
        if not torch.isfinite(parameter.detach().sum()) and not torch.isfinite(parameter).all():
            count = int((~torch.isfinite(parameter)).sum())
            raise ValueError(
                f"the weight {name} holds {count} NaN or infinite values, so every number would be "
                "NaN. Load the checkpoint again, or find where training diverged."
            )


def _detached(layer: Any) -> FeatureLayer:
    """The layer without gradients, as the model's own weights are read; nothing is copied."""
    fields = [(part.name, getattr(layer, part.name)) for part in dataclasses.fields(layer)]
    tensors = {name: part.detach() for name, part in fields if isinstance(part, Tensor)}
    activation = layer.activation
    if isinstance(activation, JumpReLU):
        activation = JumpReLU(activation.threshold.detach())
    return dataclasses.replace(layer, **tensors, activation=activation)


def _check_fit(mlps: Sequence[FeatureLayer], model: nn.Module, family: Family) -> None:
    blocks: Any = model.get_submodule(family.layers)
    unembedding: Any = model.get_submodule(family.unembedding)
    n_layers, d_model, dtype = len(blocks), unembedding.weight.shape[1], unembedding.weight.dtype
    if len(mlps) != n_layers:
        raise ValueError(
            f"{len(mlps)} replacement layers for a model of {n_layers} MLPs: one per layer is "
            "needed, first layer first."
        )
    for number, layer in enumerate(mlps):
        reads, writes = layer.read.shape[1], layer.write.shape[1]
        if (reads, writes) != (d_model, d_model):
            raise ValueError(
                f"the replacement layer of MLP {number} reads vectors of {reads} and writes "
                f"vectors of {writes}, the model's are {d_model}. Layers trained for another model?"
            )
        if (layer.read.dtype, layer.read.device) != (dtype, unembedding.weight.device):
            raise ValueError(
                f"the replacement layer of MLP {number} is {layer.read.dtype} on "
                f"{layer.read.device}, the model {dtype} on {unembedding.weight.device}. Load both "
                "in the same dtype on the same device."
            )
