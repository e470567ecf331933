"""What a model's sublayers read and write on batches of tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from replacement.families import family_of

Sublayer = Literal["attention", "mlp"]
Place = Literal["mlp", "attention", "attention output"]
"""What is recorded: a sublayer's normed input and its output, or an output as both."""


@dataclass(frozen=True)
class TokenBatch:
    """Token ids, padded on the right, and how much every position counts (0 leaves it out)."""

    ids: Int[Tensor, "batch pos"]
    weight: Float[Tensor, "batch pos"]

    def beside(self, model: nn.Module) -> "TokenBatch":
        """Return the batch on the model's device."""
        device = next(model.parameters()).device
        return TokenBatch(self.ids.to(device), self.weight.to(device))


TokenBatches = Callable[[int], list[TokenBatch]]
"""The token batches of a step, by its number; the same number must give the same batches."""


@dataclass(frozen=True)
class Activations:
    """Inputs and outputs of all layers at all positions of one batch, and what positions count."""

    inputs: Float[Tensor, "layer batch pos d_model"]
    outputs: Float[Tensor, "layer batch pos d_model"]
    weight: Float[Tensor, "batch pos"]

    @property
    def counts(self) -> Bool[Tensor, "batch pos"]:
        """True where a position's weight is not 0."""
        return self.weight > 0


@dataclass(frozen=True)
class Tokens:
    """Inputs and outputs of all layers at the positions that count, whatever prompt they are of."""

    inputs: Float[Tensor, "layer token d_model"]
    outputs: Float[Tensor, "layer token d_model"]
    weight: Float[Tensor, " token"]


def tokens_of(parts: Sequence[Activations]) -> Tokens:
    """Return the positions that count of several batches, one after the other."""
    return Tokens(
        torch.cat([part.inputs[:, part.counts] for part in parts], dim=1),
        torch.cat([part.outputs[:, part.counts] for part in parts], dim=1),
        torch.cat([part.weight[part.counts] for part in parts]),
    )


def norms_and_sublayers(model: nn.Module, sublayer: Sublayer) -> list[tuple[nn.Module, nn.Module]]:
    """Return (norm, sublayer) of every layer: the norm's output is what the sublayer reads."""
    family = family_of(model)
    attention = sublayer == "attention"
    norm = family.attention_norm if attention else family.mlp_norm
    block = family.attention if attention else family.mlp
    return [(layer.get_submodule(norm), layer.get_submodule(block)) for layer in blocks_of(model)]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the model's blocks, first layer first."""
    return list(model.get_submodule(family_of(model).layers).children())


Watch = Callable[[int, Tensor, Tensor], Tensor | None]
"""Called with (layer, normed input, output); what it returns takes the output's place, if any."""


@contextmanager
def watching(model: nn.Module, sublayer: Sublayer, watch: Watch) -> Iterator[None]:
    """Call `watch` at every sublayer of one kind that runs inside the block."""
    normed: dict[int, Tensor] = {}
    handles = []

    def hook(index: int, norm: nn.Module, block: nn.Module) -> None:
        def read(_module: nn.Module, _given: Any, output: Tensor) -> None:
            normed[index] = output

        def wrote(_module: nn.Module, _given: Any, output: Any) -> Any:
            plain = isinstance(output, Tensor)
            changed = watch(index, normed.pop(index), output if plain else output[0])
            if changed is None:
                return None
            return changed if plain else (changed, *output[1:])

        handles.extend([norm.register_forward_hook(read), block.register_forward_hook(wrote)])

    try:
        for index, (norm, block) in enumerate(norms_and_sublayers(model, sublayer)):
            hook(index, norm, block)
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def collect(model: nn.Module, batch: TokenBatch, place: Place = "mlp") -> Activations:
    """Return what the sublayers of all layers read and wrote on a batch."""
    batch = batch.beside(model)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def record(_layer: int, normed: Tensor, output: Tensor) -> None:
        given = output if place == "attention output" else normed
        inputs.append(given.view(*batch.ids.shape, -1))  # OPT's MLP reads all prompts flattened
        outputs.append(output.view(*batch.ids.shape, -1))

    with watching(model, "mlp" if place == "mlp" else "attention", record):
        model(batch.ids)
    return Activations(torch.stack(inputs), torch.stack(outputs), batch.weight)
