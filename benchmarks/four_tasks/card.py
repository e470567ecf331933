"""The model card, written from the measured figures and nothing else."""

from typing import Any

from benchmarks.tasks import FIVE_TASKS, TASKS

TEMPLATE = """\
---
license: mit
library_name: transformers
tags: [interpretability, circuits, transcoders, sparse-autoencoders]
---

# four-tasks

A small GPT-2 ({layers} layers, width {width}, {heads} heads, {parameters:,} parameters, vocabulary of
{words} words) that does four things people have found circuits for, one transcoder per MLP, and
one Lorsa layer and one SAE per attention layer. It comes with `linear-circuits`, so that every example and
every test runs without a download: `load("four-tasks")`. This card is written from `figures.json`, measured
on the weights as stored (float16, computed in float32).

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

| test | measure | bar | model | {columns} |
|---|---|---|---|{rules}|
{tests}

"In place" of all their originals, at every position, BOS included, with no error added back: "MLPs" are
the transcoders, "SAEs" those on attention's output. With Lorsa and transcoders nothing of the
original is left but embeddings, norms and unembedding. With SAEs attention itself still runs.

The same in bits:

| test | model | {columns} |
|---|---|{rules}|
{bits}
| KL(model ‖ in place), nats per word | 0 | {kl} |
| cross-entropy, nats per word | {cross_entropy:.4f} | {cross_entropies} |

* `argmax`: the right token is the likeliest of the whole vocabulary. Induction: in the second copy,
  from its second token on. Bracket: every closing bracket after "close:"; "at full depth" asks to
  close a bracket that was opened just before and is easy.
* `share`: the probability of later years among all hundred two-digit tokens, mean over prompts.
* IOI also with the weaker usual measure, logit of the indirect object above that of the subject:
  {preferred} of the prompts.
* bits: minus the binary logarithm of the probability of the token that follows.

## The layers

All are TopK. Transcoders read the normed MLP input and write the MLP output, Lorsa layers read attention's
normed input and write its output, the SAEs read and write attention's output. Rows below: held-out
examples, equal weight a task, BOS left out; variance explained is normalised by the variance of the
original output.

| kind | layer | features | k | variance explained | mean L0 | never active |
|---|---|---|---|---|---|---|
{metrics}

The features of a Lorsa layer are its value-output heads; {groups}.

{frontier}## How it was made

```
python -m benchmarks.four_tasks model          --out FOLDER --work WORK
python -m benchmarks.four_tasks transcoders    --out FOLDER --work WORK
python -m benchmarks.four_tasks lorsa          --out FOLDER --work WORK
python -m benchmarks.four_tasks attention-saes --out FOLDER --work WORK
python -m benchmarks.four_tasks evaluate       --out FOLDER
python -m benchmarks.four_tasks frontier       --out FOLDER --work WORK
python -m benchmarks.four_tasks card           --out FOLDER
```

All data are generated (`benchmarks/tasks/`) from the seed and the number of the step. The loss of a
task is the mean cross-entropy where the task determines what follows, plus "other weight" times the
mean everywhere else; all four have equal weight, and no token names the task. An interrupted command
goes on from its checkpoint in WORK. On other hardware or versions floating-point sums
differ, and so will the weights; the figures should not.

| | model | transcoders | Lorsa | attention SAEs |
|---|---|---|---|---|
{settings}

Versions: {versions}. Weight files (SHA-256 in `figures.json`): {bytes}, everything in the folder
{total_bytes}.

## Limits

The model knows {words} words and nothing else; other words become `<unk>`. It is an object of study,
not of use. Its circuits are those of a small model trained on exactly these four tasks; what holds in
them need not hold in a language model at large. Features that matter only off these tasks are not there.

Licence: MIT.
"""  # noqa: E501


FRONTIER = """\
### With fewer features or more

Lorsa and SAEs trained with other k, all else equal; the last columns are what the model reaches with them
and the transcoders in place. These rows (`frontier.json`) are measured before rounding to float16.

| kind | k | mean L0 | median variance explained | most never active | KL | {tasks} |
|---|---|---|---|---|---|{task_rules}|
{frontier}

"""  # noqa: E501

NAMES = {"transcoders": "MLPs", "lorsa": "Lorsa", "attention-saes": "SAEs"}


def card(figures: dict[str, Any], frontier: list[dict[str, Any]], d_vocab: int) -> str:
    """Return the model card as Markdown; without rows of the frontier, without its table."""
    model, layers, in_place = figures["model"], figures["layers"], figures["in_place"]
    settings = model["settings"]
    sizes = figures["bytes"]
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    reached = [found["tests"] for found in in_place.values()]
    return TEMPLATE.format(
        **{name: settings[name] for name in ("layers", "width", "heads")},
        parameters=model["parameters"],
        words=d_vocab,
        held_out="A tenth",
        prompts=f"{figures['prompts_per_test']:,}",
        columns=" | ".join(_configuration(name) for name in in_place),
        rules="|".join("---" for _ in in_place),
        tests="\n".join(_test_rows(model["tests"], reached)),
        bits="\n".join(_bit_rows(model["tests"], reached)),
        kl=" | ".join(f"{found['kl']:.4f}" for found in in_place.values()),
        cross_entropy=next(iter(in_place.values()))["cross_entropy"],
        cross_entropies=" | ".join(
            f"{found['cross_entropy_replaced']:.4f}" for found in in_place.values()
        ),
        preferred=_percent(model["tests"]["ioi"]["preferred"]),
        metrics="\n".join(_layer_rows(layers)),
        groups=_groups(settings, layers["lorsa"]["settings"]),
        frontier=_frontier_section(frontier),
        settings="\n".join(
            _setting_rows([settings, *(layers[kind]["settings"] for kind in NAMES)])
        ),
        versions=", ".join(f"{name} {version}" for name, version in figures["versions"].items()),
        bytes=f"{weights / 1e6:.1f} MB",
        total_bytes=f"{sum(sizes.values()) / 1e6:.1f} MB",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _configuration(name: str) -> str:
    """What is in place, in the words of the card."""
    return " + ".join(NAMES[kind] for kind in name.split(", "))


def _test_rows(alone: dict[str, Any], reached: list[dict[str, Any]]) -> list[str]:
    return [
        f"| {name} | {test['measure']} | {100 * test['bar']:.0f} % | "
        + " | ".join(_percent(found[name]["reached"]) for found in [alone, *reached])
        + " |"
        for name, test in alone.items()
    ]


def _bit_rows(alone: dict[str, Any], reached: list[dict[str, Any]]) -> list[str]:
    return [
        f"| {name} | " + " | ".join(f"{one[name]['bits']:.4f}" for one in [alone, *reached]) + " |"
        for name in alone
    ]


def _layer_rows(kinds: dict[str, Any]) -> list[str]:
    return [
        f"| {kind} | {index} | {found['settings']['n_features']} | {found['settings']['k']} "
        f"| {layer['variance_explained']:.4f} | {layer['l0']:.2f} | {_percent(layer['dead'])} |"
        for kind, found in kinds.items()
        for index, layer in enumerate(found["metrics"])
    ]


def _groups(model: dict[str, Any], lorsa: dict[str, Any]) -> str:
    """How value-output heads share query-key heads."""
    query_key = model["heads"] * lorsa["repeats"]
    return f"{lorsa['n_features'] // query_key} share each of {query_key} query-key heads"


def _frontier_section(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    return FRONTIER.format(
        tasks=" | ".join(TASKS),
        task_rules="|".join("---" for _ in TASKS),
        frontier="\n".join(map(_frontier_row, rows)),
    )


def _frontier_row(row: dict[str, Any]) -> str:
    reached = " | ".join(_percent(row["reached"][task]) for task in TASKS)
    return (
        f"| {row['kind']} | {row['k']} | {row['l0']:.2f} | {row['median_variance_explained']:.4f} "
        f"| {_percent(max(row['dead']))} | {row['kl']:.4f} | {reached} |"
    )


def _label(name: str) -> str:
    return f"{name} examples a step" if name in FIVE_TASKS else name.replace("_", " ")


def _setting_rows(columns: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for settings in columns for name in settings)
    return [
        f"| {_label(name)} | " + " | ".join(str(one.get(name, "")) for one in columns) + " |"
        for name in names
    ]
