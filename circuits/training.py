"""Replacement layers for any model, trained on one's own texts and measured on the rest."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from circuits.ranks import joined
from graphs.files.atomic import write_whole
from replacement.checkpoints import save_attention_saes, save_lorsa, save_transcoders
from replacement.checkpoints.folders import check_free
from replacement.model import ReplacementModel
from replacement.prompts import token_ids_of
from replacement.training import (
    LayerMetrics,
    LorsaSettings,
    ModelMetrics,
    TopKSettings,
    each_once,
    measure_layers,
    measure_model,
    prompt_batches,
    train_attention_saes,
    train_lorsa,
    train_transcoders,
)

HELD_OUT_EVERY = 20
"""Every so-many-th prompt is not trained on but measured with."""


@dataclass(frozen=True)
class Kind:
    """A class of replacement layers: how it is trained and saved, and what it stands in for."""

    train: Callable[..., list[Any]]
    write: Callable[..., None]
    settings: type[TopKSettings]
    replaces: str


KINDS = {
    "transcoders": Kind(train_transcoders, save_transcoders, TopKSettings, "mlps"),
    "lorsa": Kind(train_lorsa, save_lorsa, LorsaSettings, "attentions"),
    "attention-saes": Kind(train_attention_saes, save_attention_saes, TopKSettings, "attentions"),
}


@dataclass(frozen=True)
class Trained:
    """What a training run reached, on prompts it did not see."""

    layers: list[LayerMetrics]
    model: ModelMetrics
    folder: Path

    def __str__(self) -> str:
        rows = [
            f"layer {number}: variance explained {layer.variance_explained:.4f}, "
            f"L0 {layer.l0:.2f}, never active {layer.dead:.1%}"
            for number, layer in enumerate(self.layers)
        ]
        model = self.model
        return "\n".join(
            [
                *rows,
                f"cross-entropy {model.cross_entropy:.4f} nats, with all layers in place "
                f"{model.cross_entropy_replaced:.4f}; KL {model.kl:.4f}",
                f"wrote {self.folder}",
            ]
        )


def train_layers(
    model: ReplacementModel,
    prompts: Sequence[str],
    kind: str,
    folder: Path,
    *,
    batch_size: int = 32,
    longest: int | None = 128,
    work: Path | None = None,
    **settings: Any,
) -> Trained:
    """Train one layer per layer of a model, write them to `folder` and return what they reach.

    `kind`: "transcoders", "lorsa" or "attention-saes". Every twentieth prompt is held out for the
    figures returned. `settings` are those of `replacement.training.TopKSettings` (for Lorsa
    `LorsaSettings`). An interrupted run of the same model, prompts and settings goes on from its
    last checkpoint (one every 250 steps) in `work`, by default beside `folder`. Under torchrun all
    processes share the prompts of every step, and the first writes the folder. Raises ValueError
    for an unknown kind or setting, too few or too short prompts, fewer prompts a step than
    processes, or a folder that holds something else.
    """
    if kind not in KINDS:
        raise ValueError(f"train(kind={kind!r}): one of {', '.join(KINDS)}.")
    if len(prompts) < HELD_OUT_EVERY:
        raise ValueError(
            f"{len(prompts)} prompts: at least {HELD_OUT_EVERY} are needed (every "
            f"{HELD_OUT_EVERY}th is held out), and many thousands for layers of use."
        )
    chosen, hf_model = KINDS[kind], model.hf_model
    try:
        run_settings = chosen.settings(**settings)
    except TypeError as problem:
        raise ValueError(f"train({kind}): {problem}") from None
    ids = [
        token_ids_of(
            prompt, model.tokenizer, d_vocab=model.weights.d_vocab, n_context=None
        ).tolist()
        for prompt in prompts
    ]
    limit = min(size for size in (longest, model.n_context) if size is not None)
    pad = getattr(model.tokenizer, "pad_token_id", None) or 0
    seen = [one for number, one in enumerate(ids) if (number + 1) % HELD_OUT_EVERY]
    kept = ids[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    batches = prompt_batches(seen, batch_size, seed=run_settings.seed, longest=limit, pad=pad)
    measured = each_once(kept, batch_size, longest=limit, pad=pad)
    check_free(kind, folder)
    work = work or folder.with_name(f"{folder.name}-training")
    origin = _digest(hf_model, seen, batch_size, limit)
    with joined() as ranks:
        layers = chosen.train(hf_model, batches, run_settings, work / origin)
    trained = Trained(
        measure_layers(hf_model, layers, measured),
        measure_model(hf_model, measured, **{chosen.replaces: layers}),
        folder,
    )
    if ranks.rank == 0:
        chosen.write(layers, folder)
        _note(folder, model, kind, run_settings, trained)
    return trained


def _digest(
    hf_model: nn.Module, prompts: Sequence[Sequence[int]], batch_size: int, longest: int
) -> str:
    """What a run's checkpoint belongs to: a name made of the model's weights and of the data."""
    digest = hashlib.sha256(json.dumps([list(prompts), batch_size, longest]).encode())
    for name, weight in hf_model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _note(
    folder: Path, model: ReplacementModel, kind: str, settings: TopKSettings, trained: Trained
) -> None:
    """Write beside the weights what made them and what they reach."""
    figures = {
        "model": model.name,
        "kind": kind,
        "settings": asdict(settings),
        "layers": [asdict(layer) for layer in trained.layers],
        "in_place": asdict(trained.model),
    }
    write_whole(folder / "figures.json", (json.dumps(figures, indent=1) + "\n").encode())


def prompts_of(file: Path) -> list[str]:
    """Return the prompts of a text file, one a line, or of a .jsonl file with a "prompt" each.

    Raises FileNotFoundError or ValueError for a file that is missing or holds no prompts.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file. Give a text file with one prompt a line.")
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as problem:
        raise ValueError(f"{file}: not UTF-8 text ({problem}).") from None
    if file.suffix == ".jsonl":
        try:
            lines = [json.loads(line)["prompt"] for line in lines]
        except (json.JSONDecodeError, KeyError, TypeError) as problem:
            raise ValueError(
                f'{file}: every line must be an object with a "prompt" ({problem!r}).'
            ) from None
    if not lines:
        raise ValueError(f"{file}: holds no prompts. Give one a line.")
    return lines
