"""Random models, transcoders and targets for the tests: tiny, seeded, no weight left at zero.

Every bias and every norm gain is random too, so that one that is forgotten somewhere shows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from replacement.layers import (
    Activation,
    BatchTopK,
    FeatureLayer,
    JumpReLU,
    ReLU,
    TopK,
    Transcoder,
)
from replacement.model import ReplacementModel
from replacement.run import Run
from replacement.target import Target


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
}
KINDS = ("relu", "jumprelu", "topk", "batchtopk")


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


def random_activation(
    kind: str, n_features: int, source: torch.Generator, dtype: torch.dtype
) -> Activation:
    """Return an activation that keeps some features of random inputs and drops some."""
    thresholds = 0.5 * torch.rand(n_features, generator=source)
    made: dict[str, Callable[[], Activation]] = {
        "relu": ReLU,
        "jumprelu": lambda: JumpReLU(thresholds.to(dtype)),
        "topk": lambda: TopK(3),
        "batchtopk": lambda: BatchTopK(0.4),
    }
    return made[kind]()


def random_transcoder(
    kind: str,
    d_model: int = 8,
    n_features: int = 20,
    *,
    skip: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Transcoder:
    """Return a transcoder with random weights and biases (it reproduces no MLP: large errors)."""
    source = torch.Generator().manual_seed(1000 + seed)

    def noise(*shape: int) -> Tensor:
        return (0.5 * torch.randn(shape, generator=source)).to(dtype)

    return Transcoder(
        read=noise(n_features, d_model),
        write=noise(n_features, d_model),
        read_bias=noise(n_features),
        write_bias=noise(d_model),
        activation=random_activation(kind, n_features, source, dtype),
        skip=noise(d_model, d_model) if skip else None,
    )


@dataclass(frozen=True)
class Case:
    """One random model read through one kind of MLP nodes, and the seed of both."""

    shape: str
    mlp: str
    """ "neurons" or one of `KINDS`."""
    skip: bool = False
    seed: int = 0

    def __str__(self) -> str:
        skip = " with skip" if self.skip else ""
        return f"{self.shape}, {self.mlp}{skip}, seed {self.seed}"


CASES = [
    *(Case(shape, "neurons", seed=number) for number, shape in enumerate(SHAPES)),
    *(Case("two layers", kind, skip) for kind in KINDS for skip in (False, True)),
    Case("deep", "jumprelu", skip=True, seed=1),
    Case("deep", "topk", seed=2),
    Case("width is vocabulary", "relu", skip=True, seed=3),
    Case("one token", "batchtopk", skip=True, seed=4),
    Case("full context", "topk", skip=True, seed=5),
]


def mlps_of(case: Case, dtype: torch.dtype = torch.float64) -> list[FeatureLayer] | None:
    """Return the replacement layers of a case, None for the model's own neurons."""
    if case.mlp == "neurons":
        return None
    shape = SHAPES[case.shape]
    return [
        random_transcoder(
            case.mlp, shape.d_model, skip=case.skip, seed=10 * case.seed + layer, dtype=dtype
        )
        for layer in range(shape.n_layers)
    ]


def random_ids(shape: Shape, seed: int = 0) -> list[int]:
    """Return the token ids of a random prompt."""
    source = torch.Generator().manual_seed(2000 + seed)
    return torch.randint(shape.d_vocab, (shape.n_tokens,), generator=source).tolist()


@lru_cache(maxsize=64)
def random_run(case: Case, dtype: torch.dtype = torch.float64) -> Run:
    """Return the recorded run of a case: the same object for the same case (runs are values)."""
    shape = SHAPES[case.shape]
    model = ReplacementModel(random_gpt2(shape, case.seed, dtype), mlps=mlps_of(case, dtype))
    return model.run(random_ids(shape, case.seed))


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
}
"""Every kind of target, and sums that read several stages and positions."""


def _vector(run: Run, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(3000 + seed)
    width = run.weights.d_model
    return torch.randn(width, generator=source, dtype=torch.float64).to(run.logits.dtype)
