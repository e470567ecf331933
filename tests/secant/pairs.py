"""Pairs of runs of one random model, to be compared."""

from functools import lru_cache

import torch

from replacement.run import Run
from replacement.secant import RunPair, SecantRule
from replacement.target import Target
from tests.samples import SHAPES, TARGETS, Case, random_run

OTHERS = ("one token", "all tokens", "no token")
"""What differs between the prompts of a pair."""
RULES = {
    "means": SecantRule(0.5, 0.5, 0.5, 0.5),
    "clean": SecantRule(1.0, 1.0, 1.0, 1.0),
    "other": SecantRule(0.0, 0.0, 0.0, 0.0),
    "mixed": SecantRule(0.83, 0.21, 0.64, 0.37),
}


def changed(token_ids: list[int], differs: str, d_vocab: int) -> list[int]:
    """Return a prompt of the same length that differs in one token (not the last), all or none."""
    steps = [0] * len(token_ids)
    if differs == "one token":
        steps[(len(token_ids) - 1) // 2] = 2
    elif differs == "all tokens":
        steps = [1 + place % 3 for place in range(len(token_ids))]
    return [(token + step) % d_vocab for token, step in zip(token_ids, steps, strict=True)]


@lru_cache(maxsize=256)
def runs_of(case: Case, differs: str, dtype: torch.dtype = torch.float64) -> tuple[Run, Run]:
    """Return the run of a case and one that differs from it."""
    clean = random_run(case, dtype)
    ids = changed(clean.token_ids.tolist(), differs, SHAPES[case.shape].d_vocab)
    return clean, clean.model.run(ids, errors=case.errors)


@lru_cache(maxsize=256)
def pair_of(
    case: Case, differs: str = "one token", rule: str = "means", dtype: torch.dtype = torch.float64
) -> RunPair:
    """Return the runs of a case compared."""
    return RunPair(*runs_of(case, differs, dtype), RULES[rule])


def difference(pair: RunPair, name: str) -> Target:
    """Return by how much one of the sample targets differs between two runs."""
    return pair.difference(TARGETS[name](pair.clean))
