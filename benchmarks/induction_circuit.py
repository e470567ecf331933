"""Does the induction circuit come out whole? Random sequences, one prediction each, two questions.

A block of random words is repeated; the prompt ends at a word of the second copy, and the word that
followed it the first time is explained (Olsson et al. 2022, 2209.11895). Found whole means

1. *moved*: the strongest node of attention at the last position moved most of what it wrote from
   the word after the earlier occurrence;
2. *key side*: tracing that node's attention score, contrasted with the other keys, the strongest
   node of attention at the key is one of an earlier layer that moved most from the position before
   it (a previous-token head);
3. *query side*: the strongest token at the query's side is the current token.

Nothing is chosen by hand: the strongest node of each trace is taken, whatever it is.
"""

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from benchmarks.four_tasks.folder import write_json
from benchmarks.tasks.induction import random_words
from benchmarks.tasks.vocabulary import spell
from circuits import Circuit, load, trace
from circuits.attention import AttentionOf
from replacement.model import ReplacementModel

ATTENTION = ("head", "lorsa")


@dataclass(frozen=True)
class Sequence:
    """A prompt that ends in its second copy."""

    prompt: str
    """Ends at the second copy's word at hand."""
    follows: str
    """The token that came next the first time."""
    earlier: int
    """Position of the last token's earlier occurrence."""


@dataclass(frozen=True)
class Found:
    """What the traces of one sequence show."""

    predicted: bool
    """The model's likeliest next token is the repeated one."""
    moved: bool
    key_side: bool
    query_side: bool

    @property
    def whole(self) -> bool:
        return self.moved and self.key_side and self.query_side


def random_sequences(count: int, *, seed: int = 0) -> list[Sequence]:
    """Return held-out random sequences, each cut after a word of its second copy."""
    rng = random.Random(f"induction circuit/{seed}")
    sequences = []
    while len(sequences) < count:
        example = random_words(rng, "held_out")
        first, second = example.roles["FIRST"], example.roles["SECOND"]
        if len(first) < 3:
            continue
        place = rng.randrange(1, len(first) - 1)
        words = example.words[: second[place]]
        prompt = "".join(map(spell, words)).removeprefix(" ")
        sequences.append(Sequence(prompt, spell(example.words[second[place]]), first[place]))
    return sequences


def find(model: ReplacementModel, sequence: Sequence) -> Found:
    """Return what tracing one sequence shows."""
    run = model.run(sequence.prompt)
    last, key = len(run.tokens) - 1, sequence.earlier + 1
    predicted = model.token_text(int(run.next_logits.argmax())) == f'"{sequence.follows}"'
    circuit = trace(run.logit(sequence.follows).centered(), progress=False)
    reader = strongest_reader(circuit, last)
    if reader is None:
        return Found(predicted, moved=False, key_side=False, query_side=False)
    look = circuit.attention(reader, keys=0)
    moved = moved_from(look) == key
    score = {
        side: run.attention_score(look.layer, look.head, last, key, side=side, contrast=True)
        for side in ("key", "query")
    }
    at_key = trace(score["key"], progress=False)
    before = strongest_reader(at_key, key)
    key_side = before is not None and (
        moved_from(at_key.attention(before, keys=0)) == sequence.earlier
    )
    nodes = trace(score["query"], progress=False).nodes
    tokens = nodes.loc[nodes["kind"].eq("token")]
    query_side = int(tokens["pos"].to_numpy()[tokens["attribution"].to_numpy().argmax()]) == last
    return Found(predicted, moved, key_side, query_side)


def strongest_reader(circuit: Circuit, pos: int) -> int | None:
    """Return the node of attention at a position that adds most to the target, if one does."""
    nodes = circuit.nodes
    here = nodes.loc[nodes["kind"].isin(ATTENTION) & nodes["pos"].eq(pos)]
    attribution = here["attribution"].to_numpy()
    if not (attribution > 0).any():
        return None
    return int(here.index.to_numpy()[attribution.argmax()])


def moved_from(look: AttentionOf) -> int:
    """Return the key that a node moved most from."""
    return int(look.keys.index.to_numpy()[look.keys["moved"].to_numpy().argmax()])


def shares(found: list[Found]) -> dict[str, float]:
    """Return in which share of the sequences each part was found."""
    parts = [{**asdict(one), "whole": one.whole} for one in found]
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    count: Annotated[int, typer.Option(help="Random sequences.")] = 200,
) -> None:
    """Look for the induction circuit with the model's heads and with Lorsa."""
    results = {}
    for attention in ("heads", "lorsa"):
        model = load("four-tasks", attention=attention)
        found = [find(model, one) for one in tqdm(random_sequences(count), desc=attention)]
        results[attention] = shares(found)
        typer.echo(f"{attention}: {results[attention]}")
    command = f"python -m benchmarks.induction_circuit --count {count} -o {output.name}"
    write_json(output, {"command": command, "sequences": count, "shares": results})
    typer.echo(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
