"""Random models, runs and targets for the tests: tiny, seeded, no weight left at zero.

Every bias and every norm gain is random too, so that one that is forgotten somewhere shows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from replacement.layers import AttentionSAE, FeatureLayer, Lorsa, ResidualSAE
from replacement.model import ReplacementModel
from replacement.run import Run
from replacement.target import Target
from tests.random_layers import KINDS, random_attention, random_mlp, random_sae


@dataclass(frozen=True)
class Shape:
    """The sizes of one tiny GPT-2 and of a prompt for it."""

    n_layers: int = 2
    n_heads: int = 2
    d_model: int = 8
    d_mlp: int = 12
    d_vocab: int = 13
    n_context: int = 9
    n_tokens: int = 5
    activation: str = "gelu_new"
    unembedding_bias: bool = False


SHAPES = {
    "two layers": Shape(),
    "deep": Shape(n_layers=3, n_heads=3, d_model=6, d_mlp=7, n_tokens=4, activation="relu"),
    "one layer": Shape(n_layers=1, n_heads=1, d_model=5, d_mlp=9, activation="silu"),
    "one head wide": Shape(n_heads=1, d_model=4, d_mlp=16, n_tokens=6, activation="gelu"),
    "width is vocabulary": Shape(d_model=8, d_vocab=8, unembedding_bias=True),
    "one token": Shape(n_tokens=1, n_heads=4),
    "full context": Shape(n_tokens=9, unembedding_bias=True),
    "deep and long": Shape(n_layers=3, d_model=6, d_mlp=7, n_tokens=6),
}


def random_gpt2(
    shape: Shape = SHAPES["two layers"],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    attention: str = "eager",
) -> GPT2LMHeadModel:
    """Return a GPT-2 with random weights, biases, gains and norm biases, in evaluation mode."""
    config = GPT2Config(
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        n_embd=shape.d_model,
        n_inner=shape.d_mlp,
        vocab_size=shape.d_vocab,
        n_positions=shape.n_context,
        activation_function=shape.activation,
        tie_word_embeddings=not shape.unembedding_bias,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )
    model = GPT2LMHeadModel(config)
    if shape.unembedding_bias:
        model.lm_head = nn.Linear(shape.d_model, shape.d_vocab)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            is_gain = ".ln_" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_gain else 0.5 * noise)
    return model.to(dtype).eval()


@dataclass(frozen=True)
class Case:
    """One random model, what its MLPs and attention layers are read through, and the seed of all.

    "a | b" is a for layers 0, 2, … and b for layers 1, 3, …; "a | b | c" likewise.
    """

    shape: str
    mlp: str
    """What `random_mlp` takes."""
    skip: bool = False
    seed: int = 0
    attention: str = "heads"
    """ "heads" or one of `ATTENTIONS`."""
    errors: bool = True
    """False for a replacement run."""
    streams: tuple[tuple[int, str], ...] = ()
    """Stages at which the residual stream is read as features, and their activations."""

    def __str__(self) -> str:
        skip = " with skip" if self.skip else ""
        attention = "" if self.attention == "heads" else f", {self.attention}"
        errors = "" if self.errors else ", no errors"
        streams = "".join(f", stage {stage} {kind}" for stage, kind in self.streams)
        return f"{self.shape}, {self.mlp}{skip}{attention}{streams}{errors}, seed {self.seed}"

    def read_as(self, sublayer: str) -> list[str]:
        """Return what the MLP or the attention of each layer is read as."""
        named = (self.attention if sublayer == "attn" else self.mlp).split(" | ")
        return [named[layer % len(named)] for layer in range(SHAPES[self.shape].n_layers)]


HEADS = [
    *(Case(shape, "neurons", seed=number) for number, shape in enumerate(SHAPES)),
    *(Case("two layers", kind, skip) for kind in KINDS for skip in (False, True)),
    Case("deep", "jumprelu", skip=True, seed=1),
    Case("deep", "topk", seed=2),
    Case("width is vocabulary", "relu", skip=True, seed=3),
    Case("one token", "batchtopk", skip=True, seed=4),
    Case("full context", "topk", skip=True, seed=5),
]
"""Attention is read as the model's own heads."""
LEARNED = [
    Case("two layers", "neurons", attention="lorsa"),
    Case("two layers", "topk gated", attention="lorsa rotary", seed=1),
    Case("deep", "neurons | relu", skip=True, attention="lorsa window | heads", seed=2),
    Case("full context", "relu", skip=True, attention="lorsa grouped | lorsa llama3", seed=3),
    Case("width is vocabulary", "neurons", attention="heads | lorsa topk", seed=4),
    Case("two layers", "neurons | jumprelu gated", attention="sae | lorsa grouped", seed=5),
    Case("deep", "batchtopk", attention="sae topk", seed=6),
    Case("one token", "topk", skip=True, attention="lorsa llama3 | sae", seed=7),
    Case("two layers", "cross topk gated", attention="lorsa", seed=8),
    Case("deep", "neurons | cross jumprelu gated | cross relu", skip=True, seed=9),
    Case("deep", "cross relu | cross topk | batchtopk", attention="heads | sae", seed=10),
]
"""Attention, or some of it, is read through learned layers, or MLPs are across layers."""
STREAM = [
    Case("two layers", "stream topk", skip=True, seed=11),
    Case("deep", "stream cross relu", skip=True, attention="lorsa | heads", seed=12),
    Case("deep", "stream cross topk", streams=((1, "relu"), (4, "topk")), seed=19),
]
"""Transcoders that read the residual stream before the norm."""
RESIDUAL = [
    Case("two layers", "neurons", streams=((2, "relu"),), seed=13),
    Case("two layers", "topk", skip=True, streams=((0, "topk gated"), (4, "relu")), seed=14),
    Case("deep", "relu", attention="lorsa | heads", streams=((3, "relu"),), seed=15),
    Case("deep", "neurons | topk", attention="sae", streams=((1, "topk"), (2, "relu")), seed=16),
    Case("deep", "cross topk", skip=True, streams=((2, "jumprelu gated"),), seed=17),
    Case(
        "deep",
        "cross relu",
        attention="lorsa rotary",
        streams=((0, "relu"), (3, "batchtopk"), (5, "relu"), (6, "topk")),
        seed=18,
    ),
]
"""Residual SAEs: entering a layer, entering an MLP, entering the final norm."""
REPLACED = [
    Case("two layers", "topk", skip=True, attention="lorsa rotary | lorsa window", errors=False),
    Case("deep", "relu", attention="lorsa grouped | heads", errors=False, seed=1),
    Case("full context", "neurons | jumprelu", attention="sae", errors=False, seed=2),
    Case("deep", "cross topk", skip=True, attention="heads | lorsa rotary", errors=False, seed=3),
    *(replace(case, errors=False) for case in RESIDUAL),
]
"""Replacement runs: no errors, the layers stand in for what they replace."""
CASES = [*HEADS, *LEARNED, *STREAM, *RESIDUAL, *REPLACED]


def mlps_of(case: Case, dtype: torch.dtype = torch.float64) -> list[FeatureLayer | None] | None:
    """Return the replacement layers of a case; None for the model's own neurons."""
    if case.mlp == "neurons":
        return None
    kinds = case.read_as("mlp")
    return [
        random_mlp(
            kind,
            SHAPES[case.shape].d_model,
            n_later=len(kinds) - 1 - layer,
            skip=case.skip,
            seed=10 * case.seed + layer,
            dtype=dtype,
        )
        for layer, kind in enumerate(kinds)
    ]


def attentions_of(
    case: Case, dtype: torch.dtype = torch.float64
) -> list[Lorsa | AttentionSAE | None] | None:
    """Return what the attention layers of a case are read through; None for the model's heads."""
    if case.attention == "heads":
        return None
    width = SHAPES[case.shape].d_model
    return [
        random_attention(kind, width, seed=10 * case.seed + layer, dtype=dtype)
        for layer, kind in enumerate(case.read_as("attn"))
    ]


def residuals_of(case: Case, dtype: torch.dtype = torch.float64) -> list[ResidualSAE | None] | None:
    """Return the residual SAEs of a case, stage by stage; None where it has none."""
    shape, kinds = SHAPES[case.shape], dict(case.streams)
    if not kinds:
        return None
    return [
        random_sae(
            kinds[stage], shape.d_model, seed=100 + stage + case.seed, dtype=dtype, make=ResidualSAE
        )
        if stage in kinds
        else None
        for stage in range(2 * shape.n_layers + 1)
    ]


def random_ids(shape: Shape, seed: int = 0) -> list[int]:
    """Return the token ids of a random prompt."""
    source = torch.Generator().manual_seed(2000 + seed)
    return torch.randint(shape.d_vocab, (shape.n_tokens,), generator=source).tolist()


@lru_cache(maxsize=128)
def random_run(case: Case, dtype: torch.dtype = torch.float64) -> Run:
    """Return the recorded run of a case: the same object for the same case (runs are values)."""
    shape = SHAPES[case.shape]
    model = ReplacementModel(
        random_gpt2(shape, case.seed, dtype),
        mlps=mlps_of(case, dtype),
        attentions=attentions_of(case, dtype),
        residuals=residuals_of(case, dtype),
    )
    return model.run(random_ids(shape, case.seed), errors=case.errors)


TARGETS: dict[str, Callable[[Run], Target]] = {
    "logit": lambda run: run.logit(3),
    "logit of an earlier position": lambda run: run.logit(1, pos=len(run.tokens) // 2),
    "difference": lambda run: run.logit(2) - run.logit(5),
    "centered": lambda run: run.logit(0).centered(),
    "feature": lambda run: run.feature(run.weights.n_layers - 1, -1, 2),
    "feature of layer 0": lambda run: run.feature(0, 0, 4),
    "direction": lambda run: run.direction(_vector(run, 1), run.weights.n_layers),
    "direction at the start": lambda run: run.direction(_vector(run, 2), 0, 0),
    "combination": lambda run: (
        1.5 * run.logit(4)
        - run.feature(0, len(run.tokens) // 2, 1) / 2
        + run.direction(_vector(run, 3), run.weights.n_layers - 1)
        - 0.7 * run.logit(6, pos=0).centered()
    ),
    "score": lambda run: _score(run, run.weights.n_layers - 1),
    "score, query side": lambda run: _score(run, run.weights.n_layers - 1, head=-1, side="query"),
    "score, key side": lambda run: _score(run, run.weights.n_layers - 1, head=-1, side="key"),
    "difference of scores": lambda run: (
        _score(run, run.weights.n_layers - 1, back=0) - 0.9 * _score(run, run.weights.n_layers - 1)
    ),
    "contrast of a score": lambda run: run.attention_score(
        run.weights.n_layers - 1, 0, -1, -1, contrast=len(run.tokens) > 1
    ),
    "scores and logits": lambda run: (
        run.logit(2)
        - 2 * _score(run, 0, len(run.tokens) // 2, head=-1)
        + _score(run, run.weights.n_layers - 1, side="key")
        + _features_of_attention(run)
        + _features_of_streams(run)
    ),
}
"""Every kind of target, and sums that read several stages and positions."""


def _vector(run: Run, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(3000 + seed)
    width = run.weights.d_model
    return torch.randn(width, generator=source, dtype=torch.float64).to(run.next_logits.dtype)


def _score(
    run: Run, layer: int, query: int = -1, *, head: int = 0, back: int = 1, side: str = "both"
) -> Target:
    """A score of the key `back` positions before the query (a window of two sees it)."""
    query = range(len(run.tokens))[query]
    number = range(run.weights.query_key(layer).n_heads)[head]
    return run.attention_score(layer, number, query, max(query - back, 0), side=side)


def _features_of_streams(run: Run) -> Target:
    """A feature of every stage at which the residual stream is read as features."""
    total = 0 * run.logit(0)
    for stage in run.weights.streams:
        name = "mid" if stage % 2 else "resid"
        total = total + run.feature(stage // 2, len(run.tokens) // 2, 4, sublayer=name)
    return total


def _features_of_attention(run: Run) -> Target:
    """A feature of every attention layer that has features; of a head nothing can be asked."""
    total = 0 * run.logit(0)
    for number, block in enumerate(run.weights.layers):
        if block.attention is not None:
            total = total + run.feature(number, len(run.tokens) // 2, 5, sublayer="attn")
    return total
