"""One training run, step by step, that goes on from its checkpoint as if never interrupted."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from replacement.training.checkpoint import load_checkpoint, save_checkpoint
from replacement.training.ranks import rank_and_count
from replacement.training.settings import RunSettings


def run_steps(
    weights: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: RunSettings,
    checkpoint: Path,
    one_step: Callable[[int], dict[str, str]],
    *,
    stop_after: int | None = None,
) -> None:
    """Bring `weights` to the last step: `one_step(number)` for each that the checkpoint lacks.

    `one_step` returns what the bar shows, and takes its data by the step's number alone. The
    learning rate of a step is set before it, times "share" in a parameter group that has one. With
    `stop_after` the run ends at that step, checkpointed, as if it had been interrupted. Of several
    processes the first writes checkpoints, and all go on from them.
    """
    start = 0
    if state := load_checkpoint(checkpoint, settings):
        weights.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    end = settings.steps if stop_after is None else min(stop_after, settings.steps)
    steps, leads = range(start, end), rank_and_count()[0] == 0
    bar = tqdm(
        steps,
        initial=start,
        total=settings.steps,
        desc=checkpoint.stem,
        mininterval=5,
        disable=not leads,
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = group.get("share", 1.0) * settings.learning_rate_at(step)
        bar.set_postfix(one_step(step), refresh=False)
        # an interrupt can come in the middle of a step, so only whole ones are kept
        if leads and ((step + 1) % settings.checkpoint_every == 0 or step + 1 == end):
            state = {
                "step": step + 1,
                "weights": weights.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            save_checkpoint(checkpoint, settings, state)
