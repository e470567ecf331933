"""The model card, written from the measured figures and nothing else."""

from typing import Any

from benchmarks.tasks import TASKS

TEMPLATE = """\
---
license: mit
library_name: transformers
tags: [interpretability, circuits, transcoders]
---

# four-tasks

A small GPT-2 ({layers} layers, width {width}, {heads} heads, {parameters:,} parameters, vocabulary of
{words} words) that does four things people have found circuits for, and one transcoder
per MLP. It comes with `linear-circuits`, so that every example and every test runs without a
download: `load("four-tasks")`. This card is written from `figures.json`; both are measured on the
weights as stored (float16, computed in float32).

## Tasks

{held_out} of all combinations (a hash of the combination decides) are never trained on; every
figure below is on such prompts, {prompts} a row.

| task | example | what must come |
|---|---|---|
| ioi | `When Mary and John went to the store, John gave a drink to` | ` Mary`; 12 templates, ABBA and BABA, 44 names |
| induction | `… key lamp Oliver war … key lamp Oliver` | ` war`: random words or a phrase within sentences, repeated |
| bracket | `( [ {{ }} close:` | ` ]`: three kinds, up to 6 deep; after "close:" only closing brackets are legal |
| greater_than | `The war lasted from the year 17 32 to the year 17` | any of ` 33` … ` 99`; centuries 11 to 18 |

## The model

| test | measure | bar | model | transcoders in place | bits: model | bits: in place |
|---|---|---|---|---|---|---|
{tests}

* `argmax`: the right token is the likeliest of the whole vocabulary. Induction: in the second copy,
  from its second token on. Bracket: every closing bracket after "close:"; "at full depth" asks to
  close a bracket that was opened just before and is easy.
* `share`: the probability of later years among all hundred two-digit tokens, mean over prompts.
* IOI also with the weaker usual measure, logit of the indirect object above that of the subject:
  {preferred} of the prompts.
* bits: minus the binary logarithm of the probability of the token that follows.

## The transcoders

TopK with k = {k}, {features} features a layer, reading the normed MLP input and writing the MLP
output. "In place" means that all {layers} MLPs are replaced, at every position, BOS included, with no
error added back. Rows below: held-out examples, equal weight a task, BOS left out.

| layer | variance explained | mean L0 | never active |
|---|---|---|---|
{metrics}

Cross-entropy per word {cross_entropy:.4f} nats, in place {cross_entropy_replaced:.4f};
KL(model ‖ in place) {kl:.4f} nats.

## How it was made

```
python -m benchmarks.four_tasks model       --out FOLDER --work WORK
python -m benchmarks.four_tasks transcoders --out FOLDER --work WORK
python -m benchmarks.four_tasks evaluate    --out FOLDER
python -m benchmarks.four_tasks card        --out FOLDER
```

All data are generated (`benchmarks/tasks/`) from the seed and the number of the step. The loss of a
task is the mean cross-entropy where the task determines what follows, plus "other weight" times the
mean everywhere else; all four have equal weight, and no token names the task. An interrupted command
goes on from its checkpoint in WORK. On other hardware or versions floating-point sums
differ, and so will the weights; the figures should not.

| | model | transcoders |
|---|---|---|
{settings}

Versions: {versions}. Weight files (SHA-256 in `figures.json`): {bytes}, everything in the folder
{total_bytes}.

## Limits

The model knows {words} words and nothing else; other words become `<unk>`. It is an object of study,
not of use. Its circuits are those of a small model trained on exactly these four tasks; what holds in
them need not hold in a language model at large. Features that matter only off these tasks are not there.

Licence: MIT.
"""  # noqa: E501


def card(figures: dict[str, Any], d_vocab: int) -> str:
    """Return the model card as Markdown."""
    model, transcoders = figures["model"], figures["transcoders"]
    settings = model["settings"]
    sizes = figures["bytes"]
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    return TEMPLATE.format(
        **{name: settings[name] for name in ("layers", "width", "heads")},
        parameters=model["parameters"],
        words=d_vocab,
        held_out="A tenth",
        prompts=f"{figures['prompts_per_test']:,}",
        tests="\n".join(_test_rows(model["tests"], transcoders["tests"])),
        preferred=_percent(model["tests"]["ioi"]["preferred"]),
        k=transcoders["settings"]["k"],
        features=transcoders["settings"]["n_features"],
        metrics="\n".join(_layer_rows(transcoders["layers"])),
        **transcoders["in_place"],
        settings="\n".join(_setting_rows(settings, transcoders["settings"])),
        versions=", ".join(f"{name} {version}" for name, version in figures["versions"].items()),
        bytes=f"{weights / 1e6:.1f} MB",
        total_bytes=f"{sum(sizes.values()) / 1e6:.1f} MB",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _test_rows(alone: dict[str, Any], in_place: dict[str, Any]) -> list[str]:
    return [
        f"| {name} | {test['measure']} | {100 * test['bar']:.0f} % | {_percent(test['reached'])} "
        f"| {_percent(in_place[name]['reached'])} | {test['bits']:.4f} "
        f"| {in_place[name]['bits']:.4f} |"
        for name, test in alone.items()
    ]


def _layer_rows(layers: list[dict[str, float]]) -> list[str]:
    return [
        f"| {index} | {layer['variance_explained']:.4f} | {layer['l0']:.2f} "
        f"| {_percent(layer['dead'])} |"
        for index, layer in enumerate(layers)
    ]


def _label(name: str) -> str:
    return f"{name} examples a step" if name in TASKS else name.replace("_", " ")


def _setting_rows(model: dict[str, Any], transcoders: dict[str, Any]) -> list[str]:
    names = [*model, *(name for name in transcoders if name not in model)]
    return [
        f"| {_label(name)} | {model.get(name, '')} | {transcoders.get(name, '')} |"
        for name in names
    ]
