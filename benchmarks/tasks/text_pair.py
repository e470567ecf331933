"""A text and its counterfactual, for tokenizers that cut words as they like."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from replacement.prompts import single_token

Words = Callable[[Sequence[str]], list[str]]
"""Of a list, what is one token with a space in front."""


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a text.

    >>> split_words("Van Hat")
    ('Van', 'Hat')
    """
    return tuple(text.split())


@dataclass(frozen=True)
class TextPair:
    """A text and its counterfactual, cut where the answer is predicted."""

    task: str
    clean: str
    corrupt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    probability: bool = False
    """True where the metric is Σ p(right) − Σ p(wrong), False where of mean logits."""
    bos: bool = True
    """Whether the authors put a BOS in front."""
    roles: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Parts that must be one token each, as a stretch of `clean`, its leading space included."""

    def largest_wrong(self, logits: Float[Tensor, " d_vocab"], tokenizer: Any) -> Float[Tensor, ""]:
        """Return logit(right) − the largest of the wrong ones: docstring's published metric."""
        (right,) = self.right
        number = [single_token(word, tokenizer, len(logits)) for word in (right, *self.wrong)]
        return logits[number[0]] - logits[number[1:]].max()

    def positions(self, tokenizer: Any, *, bos: bool) -> dict[str, int]:
        """Return which token every role is, and "END", where the answer is predicted."""
        ends = {**{name: end for name, (_, end) in self.roles.items()}, "END": len(self.clean)}
        return {
            name: len(token_ids(self.clean[:end], tokenizer)) - 1 + bos
            for name, end in ends.items()
        }


def token_ids(text: str, tokenizer: Any) -> list[int]:
    """Return a text's tokens, none added."""
    return tokenizer(text, add_special_tokens=False).input_ids
