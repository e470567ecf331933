"""Bad input about the residual stream as features, and about halves of gated neurons."""

from pathlib import Path

import jaxtyping
import pytest
import torch

from circuits import ReplacementModel, load
from replacement.checkpoints import save_residual_saes
from replacement.layers import ResidualSAE
from tests.circuits.folders import PROMPT, text_model, text_transcoders, tokenizer
from tests.errors.mistakes import Mistake, assert_explained, each
from tests.families import tiny
from tests.random_layers import random_sae

STREAMS = [
    Mistake(
        "half of what",
        lambda _: load(text_model(), split="both"),
        ValueError,
        ("split='both'", '"half"', "leave it out"),
    ),
    Mistake(
        "half of a product where there is none",
        lambda _: load(text_model(), split="half"),
        ValueError,
        ('split="half"', "gated MLPs", "GPT2LMHeadModel has none", "Leave split out"),
    ),
    Mistake(
        "SAEs for layers, not for stages",
        lambda _: load(text_model(), residual=[sae(), None]),
        ValueError,
        ("2 replacement layers", "5 residual stages", "one per stage"),
    ),
    Mistake(
        "a transcoder for the residual stream",
        lambda _: load(text_model(), residual=[text_transcoders()[0], None, None, None, None]),
        TypeError,
        (
            "residual=[…]), entry 0: a Transcoder. Give",
            '"stream"',
            "one layer or None per residual stage",
        ),
    ),
    Mistake(
        "an SAE of the residual stream for an MLP",
        lambda _: ReplacementModel(text_model(), None, [sae(), None]),
        ValueError,
        ("a ResidualSAE was given for MLP 0", "transcoders MLPs"),
    ),
    Mistake(
        "an SAE of the residual stream for an MLP, in a list for load",
        lambda _: load(text_model(), mlp=[sae(), None]),
        TypeError,
        ("mlp=[…]), entry 0: a ResidualSAE. Give", "one layer or None per MLP"),
    ),
    Mistake(
        "a place that parallel blocks do not have",
        lambda _: ReplacementModel(tiny("GPT-NeoX"), residuals=[None, wide_sae(), *[None] * 3]),
        ValueError,
        ("stage 1", "attention and MLP of layer 0", "no such place", "stages 0, 2, 4"),
    ),
    Mistake(
        "a folder of SAEs of the residual stream for MLPs",
        lambda folder: load(text_model(), mlp=residual_folder(folder)),
        ValueError,
        ("holds residual-saes", "read residual stages: load(residual="),
    ),
    Mistake(
        "SAEs of the residual stream of a larger model",
        lambda folder: load(text_model(), residual=residual_folder(folder, n_layers=3)),
        ValueError,
        ("has stage 6", "the model has 5 stages, 0 to 4"),
    ),
    Mistake(
        "SAEs of the residual stream where there are none",
        lambda _: load(text_model(), residual="residual-saes"),
        ValueError,
        ('residual="residual-saes"', "./residual-saes", 'residual="stream"'),
    ),
    Mistake(
        "a feature of a stream that is not read",
        lambda _: load(text_model(), tokenizer()).run(PROMPT).feature(0, 1, 2, sublayer="resid"),
        ValueError,
        ("sublayer='resid'", '"resid" or "mid" where', 'layer 0 has features in "mlp".'),
    ),
    Mistake(
        "an SAE in a list from a set that has none for that stage",
        lambda folder: load(text_model(), residual=[residual_folder(folder), *[None] * 4]),
        ValueError,
        ("residual=[…]), entry 0", "saes' holds no layer for residual stage 0, only for 4", "None"),
    ),
    Mistake(
        "a feature of the final norm, which is not read",
        lambda _: load(text_model(), tokenizer()).run(PROMPT).feature(2, 1, 2, sublayer="resid"),
        ValueError,
        ("sublayer='resid'", "layer 2 has features in none of them"),
    ),
    Mistake(
        "a feature of a stream that does not exist",
        lambda _: load(text_model(), tokenizer()).run(PROMPT).feature(2, 1, 2, sublayer="mid"),
        IndexError,
        ("layer 2 does not exist", "0 to 1"),
    ),
]


def sae() -> ResidualSAE:
    """An SAE of the residual stream that fits `text_model`."""
    return random_sae("topk", dtype=torch.float32, make=ResidualSAE)


def wide_sae() -> ResidualSAE:
    return random_sae("topk", 16, make=ResidualSAE)


def residual_folder(folder: Path, n_layers: int = 2) -> Path:
    save_residual_saes([*[None] * 2 * n_layers, sae()], folder / "saes")
    return folder / "saes"


@each(STREAMS)
def test_a_mistake_is_explained_in_one_paragraph(
    mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert_explained(mistake, tmp_path)
