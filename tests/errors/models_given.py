"""Models, runs and circuits that the calls of the tables are made on."""

from functools import cache

from circuits import Circuit, ReplacementModel, Run, load, trace
from tests.circuits.folders import PROMPT, text_model, tokenizer


@cache
def model() -> ReplacementModel:
    """A model of two layers and width 8 that reads text."""
    return load(text_model(), tokenizer())


@cache
def wordless() -> ReplacementModel:
    """The same without a tokenizer."""
    return load(text_model())


@cache
def run() -> Run:
    return model().run(PROMPT)


@cache
def circuit() -> Circuit:
    return trace(run().logit(" Mary"), threshold=0.1)
