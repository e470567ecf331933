"""Training one TopK layer per sublayer, all at once (2406.11944, 2406.04093, 2504.20938).

Transcoders read the normed input of an MLP and write its output; attention SAEs read and write
attention's output; Lorsa layers read attention's normed input and write its output. The loss of a
layer is the share of the output's variance that is left unexplained. Features that have been
silent for `dead_after` steps are restarted at tokens that are explained badly (restart.py). k falls
to its final value over the first part of the run. The data of a step are asked for by the step's
number, so a run that was interrupted goes on as if it had not been. Processes of torchrun share the
prompts of every step (ranks.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replacement.families import family_of
from replacement.layers import AttentionSAE, Lorsa, Transcoder
from replacement.training.activations import (
    Activations,
    Place,
    TokenBatches,
    blocks_of,
    collect,
    tokens_of,
)
from replacement.training.loop import run_steps
from replacement.training.lorsa_stack import LorsaStack, lorsa_stack
from replacement.training.ranks import add_up_gradients, anywhere, of_all, own_share, summed
from replacement.training.restart import Given, restart_dead
from replacement.training.settings import LorsaSettings, TopKSettings
from replacement.training.stack import Stack, plain_stack

STATISTICS_STEPS = range(-4, 0)
"""Batches of these (negative) numbers set the units and the first features."""


def train_transcoders(
    model: nn.Module,
    batches: TokenBatches,
    settings: TopKSettings,
    work: Path,
    *,
    stop_after: int | None = None,
) -> list[Transcoder]:
    """Return one transcoder per MLP of `model`, going on from the checkpoint in `work`, if any.

    With `stop_after` the run ends at that step, checkpointed, as if it had been interrupted.
    """
    data = Data(model, batches, "mlp")
    stack = plain_stack(data.sample(), settings)
    _train(stack, data, settings, work / "transcoders.pt", stop_after)
    return [Transcoder(**fields) for fields in stack.fold(settings.k)]


def train_attention_saes(
    model: nn.Module,
    batches: TokenBatches,
    settings: TopKSettings,
    work: Path,
    *,
    stop_after: int | None = None,
) -> list[AttentionSAE]:
    """Return one SAE per attention layer of `model`, otherwise as `train_transcoders`."""
    data = Data(model, batches, "attention output")
    stack = plain_stack(data.sample(), settings)
    _train(stack, data, settings, work / "attention-saes.pt", stop_after)
    return [AttentionSAE(**fields) for fields in stack.fold(settings.k)]


def train_lorsa(
    model: nn.Module,
    batches: TokenBatches,
    settings: LorsaSettings,
    work: Path,
    *,
    stop_after: int | None = None,
) -> list[Lorsa]:
    """Return one Lorsa layer per attention layer of `model`, otherwise as `train_transcoders`."""
    data = Data(model, batches, "attention")
    family = family_of(model)
    heads = [family.heads(block, model) for block in blocks_of(model)]
    stack = lorsa_stack(data.sample(), heads, settings)
    _train(stack, data, settings, work / "lorsa.pt", stop_after)
    return [Lorsa(**fields) for fields in stack.fold(settings.k)]


@dataclass(frozen=True)
class Data:
    """What a model reads and writes at one place in every step."""

    model: nn.Module
    batches: TokenBatches
    place: Place

    def at(self, step: int) -> list[Activations]:
        """Return this process' activations of a step, one part a batch."""
        return [collect(self.model, one, self.place) for one in own_share(self.batches(step))]

    def sample(self) -> list[Activations]:
        """Return the activations from which units and first features are taken."""
        batches = [batch for step in STATISTICS_STEPS for batch in self.batches(step)]
        return [collect(self.model, batch, self.place) for batch in batches]


def _train(
    stack: Stack, data: Data, settings: TopKSettings, checkpoint: Path, stop_after: int | None
) -> None:
    optimizer = make_optimizer(stack, settings)

    def step(number: int) -> dict[str, str]:
        loss = one_step(stack, optimizer, data.at(number), settings=settings, step=number)
        dead = (stack.silent >= settings.dead_after).float().mean().item()
        shares = " ".join(f"{share:.4f}" for share in loss.tolist())
        return {"unexplained": shares, "dead": f"{dead:.2f}"}

    run_steps(stack, optimizer, settings, checkpoint, step, stop_after=stop_after)


def make_optimizer(stack: Stack, settings: TopKSettings) -> torch.optim.Adam:
    """Return Adam, with a learning rate of their own for query and key weights."""
    patterns = list(stack.patterns.parameters()) if isinstance(stack, LorsaStack) else []
    slow = {id(weight) for weight in patterns}
    others = [weight for weight in stack.parameters() if id(weight) not in slow]
    groups = [{"params": others, "share": 1.0}]
    if isinstance(settings, LorsaSettings):
        groups.append({"params": patterns, "share": settings.query_key_rate})
    return torch.optim.Adam(groups, betas=(0.9, 0.99))


def one_step(
    stack: Stack,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Activations],
    *,
    settings: TopKSettings,
    step: int,
) -> Float[Tensor, " layer"]:
    """Return each layer's unexplained share of variance, after one optimiser step."""
    tokens = tokens_of(parts)
    outputs = tokens.outputs * stack.output_unit[:, None, None]
    heard = stack.heard(parts)
    active = keep_largest(stack.pre_activation(heard), settings.k_at(step))
    left_over = outputs - stack.write_bias[:, None] - stack.decode(active)
    own = tokens.weight.sum()
    loss = unexplained(left_over, tokens.weight) * (own / summed(own))
    optimizer.zero_grad()
    loss.sum().backward()
    add_up_gradients(stack)
    nn.utils.clip_grad_norm_(stack.parameters(), 1.0)
    optimizer.step()
    stack.renormalise()
    fired = anywhere((active > 0).any(dim=1))
    stack.silent.copy_(torch.where(fired, 0, stack.silent + 1))
    if settings.restarts_at(step):
        lowest_kept = active.detach().topk(settings.k_at(step), dim=-1).values[..., -1]
        most = (outputs - stack.write_bias.detach()[:, None]).norm(dim=-1)
        given = Given(heard.detach(), left_over.detach(), lowest_kept, most, tokens.weight)
        restart_dead(stack, optimizer, of_all(given), settings=settings, step=step)
    return summed(loss.detach())


def keep_largest(
    pre: Float[Tensor, "layer token feature"], k: int
) -> Float[Tensor, "layer token feature"]:
    """Return the k largest positive pre-activations of every token, zero elsewhere."""
    top = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())


def unexplained(
    difference: Float[Tensor, "layer token d_model"], weight: Float[Tensor, " token"]
) -> Float[Tensor, " layer"]:
    """Return the weighted mean square of a difference in units of the output's variance."""
    per_token = difference.square().mean(-1)
    return torch.einsum("lt,t->l", per_token, weight / weight.sum())
