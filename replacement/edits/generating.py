"""Generate text under edits, token by token, with a cache of keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from replacement.edits.changes import changes_of, changes_of_new_token
from replacement.edits.live import LiveEdits
from replacement.layers import Lorsa
from replacement.prompts import token_texts
from replacement.run import Run


@dataclass(frozen=True, eq=False)
class Generated:
    """A prompt and what the model made of it."""

    token_ids: Int[Tensor, " pos"]
    """Prompt and answer."""
    tokens: list[str]
    n_prompt: int

    @property
    def text(self) -> str:
        """What was generated."""
        return "".join(self.tokens[self.n_prompt :])

    def __repr__(self) -> str:
        return f"Generated({self.text!r})"


@torch.no_grad()
def generated(
    run: Run, edits: Sequence[Any], max_new_tokens: int, end: Sequence[int], tokenizer: Any
) -> Generated:
    """Return the likeliest continuation of a run's prompt under edits.

    Edits at positions of the prompt change how the prompt is read; those at open-ended positions
    ("all", slices without end) also every token generated. `end`: tokens after which to stop.
    """
    weights, tracer = run.weights, run.model.tracer
    prompt, past = run.token_ids.to(run.next_logits.device), tracer.cache()
    changes = [changes_of(run, [edits], goes_on=True)]
    for step in range(max_new_tokens - 1):
        changes.append(changes_of_new_token(run, edits, len(prompt) + step))
    watched = {layer for one in changes[1:] for layer, name in one.places if name == "attn"}
    if not run.errors:
        watched |= {
            number
            for number, block in enumerate(weights.layers)
            if isinstance(block.attention, Lorsa)
        }
    seen: dict[int, Tensor] = {}
    ids, new = prompt, prompt[None]
    for change in changes:
        start = len(ids) - new.shape[1]
        live = LiveEdits(weights, run.errors, change, seen=seen, watched=watched, start=start)
        done = tracer.run_edited(new, live.substitutes(), set(), past=past)
        new = done.next_logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, new[0]])
        if int(new) in end:
            break
    return Generated(ids.cpu(), token_texts(ids.cpu(), tokenizer), len(prompt))
