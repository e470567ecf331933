"""Training one TopK transcoder per MLP, all layers at once (2406.11944, 2406.04093).

The loss of a layer is the share of the output's variance that is left unexplained. Features that
have been silent for `dead_after` steps are restarted at tokens that are explained badly
(restart.py). k falls to its final value over the first part of the run. The data of a step are
asked for by the step's number, so a run that was interrupted goes on as if it had not been.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from replacement.layers import Transcoder
from replacement.training.activations import Activations, TokenBatch, collect, join
from replacement.training.checkpoint import load_checkpoint, save_checkpoint
from replacement.training.restart import Given, restart_dead
from replacement.training.settings import TranscoderSettings
from replacement.training.stack import Stack

TokenBatches = Callable[[int], list[TokenBatch]]
"""The token batches of a step, by its number; the same number must give the same batches."""

STATISTICS_STEPS = range(-4, 0)
"""Batches of these (negative) numbers set the units and the first features."""


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


def one_step(
    stack: Stack,
    optimizer: torch.optim.Optimizer,
    data: Activations,
    *,
    settings: TranscoderSettings,
    step: int,
) -> Float[Tensor, " layer"]:
    """Return each layer's unexplained share of variance, after one optimiser step."""
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate_at(step)
    inputs = data.inputs * stack.input_unit[:, None, None]
    outputs = data.outputs * stack.output_unit[:, None, None]
    pre = stack.pre_activation(inputs)
    active = keep_largest(pre, settings.k_at(step))
    left_over = outputs - stack.write_bias[:, None] - stack.decode(active)
    loss = unexplained(left_over, data.weight)
    optimizer.zero_grad()
    loss.sum().backward()
    nn.utils.clip_grad_norm_(stack.parameters(), 1.0)
    optimizer.step()
    stack.renormalise()
    fired = (active > 0).any(dim=1)
    stack.silent.copy_(torch.where(fired, 0, stack.silent + 1))
    if settings.restarts_at(step):
        lowest_kept = active.detach().topk(settings.k_at(step), dim=-1).values[..., -1]
        most = (outputs - stack.write_bias.detach()[:, None]).norm(dim=-1)
        given = Given(inputs, left_over.detach(), lowest_kept, most, data.weight)
        restart_dead(stack, optimizer, given, settings=settings, step=step)
    return loss.detach()


def _data(model: nn.Module, batches: TokenBatches, step: int) -> Activations:
    return join([collect(model, batch) for batch in batches(step)])


def train_transcoders(
    model: nn.Module,
    batches: TokenBatches,
    settings: TranscoderSettings,
    work: Path,
    *,
    stop_after: int | None = None,
) -> list[Transcoder]:
    """Return one transcoder per layer of `model`, going on from the checkpoint in `work`, if any.

    With `stop_after` the run ends at that step, checkpointed, as if it had been interrupted.
    """
    checkpoint = work / "transcoders.pt"
    sample = join([_data(model, batches, step) for step in STATISTICS_STEPS])
    stack = Stack(sample, settings)
    optimizer = torch.optim.Adam(stack.parameters(), betas=(0.9, 0.99))
    start = 0
    if state := load_checkpoint(checkpoint, settings):
        stack.load_state_dict(state["stack"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    end = settings.steps if stop_after is None else min(stop_after, settings.steps)
    bar = tqdm(
        range(start, end), initial=start, total=settings.steps, desc="transcoders", mininterval=5
    )
    for step in bar:
        loss = one_step(stack, optimizer, _data(model, batches, step), settings=settings, step=step)
        dead = (stack.silent >= settings.dead_after).float().mean().item()
        unexplained_shares = " ".join(f"{share:.4f}" for share in loss.tolist())
        bar.set_postfix(unexplained=unexplained_shares, dead=f"{dead:.2f}", refresh=False)
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == end:
            state = {
                "step": step + 1,
                "stack": stack.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            save_checkpoint(checkpoint, settings, state)
    return stack.fold(settings.k)
