"""The second model's card, written from the measured figures and nothing else."""

from typing import Any

TEMPLATE = """\
---
license: mit
library_name: transformers
tags: [interpretability, circuits]
---

# five-tasks

A small GPT-2 ({layers} layers, width {width}, {heads} heads, {parameters:,} parameters, vocabulary of
{words} words) that does the four tasks of [four-tasks](../four-tasks/README.md) and continues sequences, so
that their circuits can be compared in one model. It comes with `linear-circuits`: `load("five-tasks")`
reads it through its own neurons and heads; no layers were trained for it. This card is written from
`figures.json`, measured on the weights as stored (float16, computed in float32).

| task | example | what must come |
|---|---|---|
| sequence | `Van done in 3. Hat done in 4. Ring done in 5. Desk done in 6. Sun done in` | ` 7`; numerals 1 to 12, number words, months |

Half of the texts with sequences show members at random, none the successor of the one before, and say
nothing of what follows: the last member alone is not enough. A tenth of all combinations is never trained
on; every figure is on such prompts, {prompts:,} a row. Asked are the third, fourth and fifth member.

| test | measure | bar | reached | bits |
|---|---|---|---|---|
{tests}

Measures as in the card of four-tasks. Trained with the same data and settings, and {sequence} texts with
sequences a step more ({examples} a step, {steps:,} steps, seed {seed}):

    python -m benchmarks.five_tasks model --out FOLDER --work CHECKPOINTS
    python -m benchmarks.five_tasks evaluate --out FOLDER

{versions}. Other versions, or another processor, give other last digits, and in the end
other weights. An object of study, not of use: it knows these words and nothing else. Licence: MIT.
"""  # noqa: E501


def card(figures: dict[str, Any], d_vocab: int) -> str:
    """Return the text of the model card."""
    model = figures["model"]
    settings = model["settings"]
    counts = {name: settings[name] for name in ("ioi", "induction", "bracket", "greater_than")}
    tests = "\n".join(
        f"| {name} | {row['measure']} | {row['bar']:.0%} | {row['reached']:.2%} | "
        f"{row['bits']:.4f} |"
        for name, row in model["tests"].items()
    )
    return TEMPLATE.format(
        **{name: settings[name] for name in ("layers", "width", "heads", "steps", "seed")},
        parameters=model["parameters"],
        words=d_vocab,
        prompts=figures["prompts_per_test"],
        tests=tests,
        sequence=settings["sequence"],
        examples=sum(counts.values()) + settings["sequence"],
        versions=", ".join(f"{name} {value}" for name, value in figures["versions"].items()),
    )
