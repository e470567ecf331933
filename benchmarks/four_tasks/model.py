"""The training of a bundled model: GPT-2 in small, on all its tasks at once.

Every step takes one batch of each task. The loss of a task is the mean cross-entropy where the
task determines what follows, plus `other_weight` times the mean over all other positions (the
words of a prompt, which the model can only learn the frequencies of). No task token, no
curriculum. The data of a step depend on the seed and the step alone, so a run that was
interrupted goes on as if it had not been.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.four_tasks.batches import BOS_ID, PAD_ID, Batch, collate, draw
from benchmarks.tasks import FIVE_TASKS
from benchmarks.tasks.vocabulary import token_strings
from replacement.training.loop import run_steps
from replacement.training.settings import RunSettings


@dataclass(frozen=True)
class ModelSettings(RunSettings):
    """Everything that decides the weights."""

    warm_up: int = 200
    learning_rate: float = 2e-3
    layers: int = 4
    width: int = 128
    heads: int = 4
    positions: int = 96
    weight_decay: float = 0.05
    other_weight: float = 0.2
    ioi: int = 48
    induction: int = 32
    bracket: int = 40
    greater_than: int = 96
    sequence: int = 0

    @property
    def examples(self) -> dict[str, int]:
        """The number of examples in one step, by task; none of a task that is not trained."""
        numbers = {task: getattr(self, task) for task in FIVE_TASKS}
        return {task: number for task, number in numbers.items() if number}


def build(settings: ModelSettings) -> GPT2LMHeadModel:
    """Return the untrained model."""
    torch.manual_seed(settings.seed)
    config = GPT2Config(
        vocab_size=len(token_strings(sequences=settings.sequence > 0)),
        n_positions=settings.positions,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
        pad_token_id=PAD_ID,
    )
    return GPT2LMHeadModel(config)


def task_loss(model: GPT2LMHeadModel, batch: Batch, other_weight: float) -> Float[torch.Tensor, ""]:
    """Return the mean loss where an answer follows plus the weighted mean of the rest."""
    logits = model(batch.ids).logits[:, :-1]
    loss = functional.cross_entropy(
        logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    ).view(logits.shape[:2])
    asked = batch.asked[:, :-1]
    other = batch.real[:, 1:] & ~asked
    return loss[asked].mean() + other_weight * loss[other].mean()


def make_optimizer(model: torch.nn.Module, settings: ModelSettings) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and leaves biases and gains alone."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def one_step(
    model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, settings: ModelSettings, step: int
) -> dict[str, float]:
    """Return each task's loss after one optimiser step on fresh data."""
    optimizer.zero_grad()
    losses = {}
    for task, count in settings.examples.items():
        examples = draw(task, "train", count, seed=f"{settings.seed}/{step}")
        loss = task_loss(model, collate(examples), settings.other_weight)
        loss.backward()
        losses[task] = loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return losses


def train_model(
    settings: ModelSettings, work: Path, stop_after: int | None = None
) -> GPT2LMHeadModel:
    """Return the trained model, going on from the checkpoint in `work` if there is one.

    With `stop_after` the run ends at that step, checkpointed, as if it had been interrupted.
    """
    model = build(settings)
    optimizer = make_optimizer(model, settings)

    def step(number: int) -> dict[str, str]:
        losses = one_step(model, optimizer, settings, number)
        return {task: f"{loss:.3f}" for task, loss in losses.items()}

    run_steps(model, optimizer, settings, work / "model.pt", step, stop_after=stop_after)
    return model.eval()
