"""Bad input at the door: every refusal is one paragraph that says what was given and what fits.

One row a mistake: a call, the exception it must raise, and words that its message must hold.
"""

import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    MixtralConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
    StableLmConfig,
    ViTConfig,
)

from circuits import Circuit, ReplacementModel, Run, load, plan, read, trace
from graphs.files.archive import array_bytes
from replacement.checkpoints import save_transcoders
from replacement.layers import BatchTopK
from tests.circuits.folders import (
    PROMPT,
    save_text_model,
    text_model,
    text_transcoders,
    tokenizer,
)
from tests.random_layers import random_transcoder
from tests.samples import Shape, random_gpt2

LONGEST = 900
KNOWN = ("GPT2LMHeadModel", "docs/architectures.md")
OFFERED = ("four-tasks", "hub name")


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


def saved(folder: Path) -> Path:
    """A sound .circuit file of a model without tokenizer."""
    traced = trace(wordless().run([1, 20, 30]).logit(4), threshold=0.1)
    return traced.save(folder / "saved.circuit")


def other_vocabulary() -> ReplacementModel:
    return ReplacementModel(random_gpt2(Shape(d_vocab=13), dtype=torch.float32))


def other_weights() -> ReplacementModel:
    shape = Shape(d_vocab=len(tokenizer()), n_context=24)
    return ReplacementModel(random_gpt2(shape, seed=7, dtype=torch.float32))


def padded() -> dict[str, Any]:
    return {"input_ids": [[4, 5, 1]], "attention_mask": torch.tensor([[1, 1, 0]])}


# ---------------------------------------------------------------- files that are no circuits


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The file with its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def truncated(folder: Path) -> Path:
    path = saved(folder)
    path.write_bytes(path.read_bytes()[:-400])
    return path


def with_pickle(folder: Path) -> Path:
    """An array of objects, which numpy would unpickle: code would run."""
    path = saved(folder)
    bait = folder / "bait.npy"
    np.save(bait, np.array([{"any": "object"}], dtype=object), allow_pickle=True)
    return rewritten(path, lambda members: members.update({"nodes.layer.npy": bait.read_bytes()}))


def bomb(folder: Path) -> Path:
    """A small file whose directory promises a terabyte."""
    path = folder / "bomb.circuit"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head.json", b"{}")
        archive.writestr("nodes.layer.npy", bytes(1 << 20))
        archive.filelist[-1].file_size = 1 << 40
    return path


def newer(folder: Path) -> Path:
    def change(members: dict[str, bytes]) -> None:
        head = json.loads(members["head.json"])
        members["head.json"] = json.dumps({**head, "version": 99}).encode()

    return rewritten(saved(folder), change)


def with_nan(folder: Path) -> Path:
    def change(members: dict[str, bytes]) -> None:
        count = json.loads(members["head.json"])["counts"]["nodes"]
        members["nodes.attribution.npy"] = array_bytes(np.full(count, np.nan))

    return rewritten(saved(folder), change)


def text_file(folder: Path) -> Path:
    path = folder / "notes.circuit"
    path.write_text("not a circuit\n")
    return path


# ---------------------------------------------------------------- models that do not fit


def in_memory(config: PreTrainedConfig) -> Any:
    return AutoModelForCausalLM.from_config(config)


def config_only(folder: Path, config: PreTrainedConfig) -> Path:
    config.save_pretrained(folder)
    return folder


def stable_lm() -> StableLmConfig:
    return StableLmConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )


def mixtral() -> MixtralConfig:
    return MixtralConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
    )


def gpt_oss() -> GptOssConfig:
    return GptOssConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        num_local_experts=2,
        num_experts_per_tok=1,
    )


def first_gpt() -> OpenAIGPTConfig:
    return OpenAIGPTConfig(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)


def bert() -> BertConfig:
    return BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
    )


def gpt2(**settings: Any) -> GPT2Config:
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, **settings)


def with_nan_weight() -> GPT2LMHeadModel:
    broken = text_model()
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_fc.weight[2, 3] = torch.nan
    return broken


def with_sinks() -> GPT2LMHeadModel:
    model = text_model()
    model.transformer.h[1].attn.sinks = torch.nn.Parameter(torch.zeros(2))
    return model


def half_copied(folder: Path) -> Path:
    weights = save_text_model(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def without_a_tensor(folder: Path) -> Path:
    """transformers would fill the gap with random numbers."""
    weights = save_text_model(folder) / "model.safetensors"
    tensors = load_file(weights)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def with_other_settings(folder: Path, **changes: Any) -> Path:
    """A model's folder whose config.json says something else."""
    settings = json.loads((save_text_model(folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **changes}))
    return folder


def broken_config(folder: Path) -> Path:
    (save_text_model(folder) / "config.json").write_text('{"model_type": "gpt2",')
    return folder


def transcoders_without_threshold(folder: Path) -> Path:
    layers = [random_transcoder("batchtopk", seed=layer, dtype=torch.float32) for layer in range(2)]
    save_transcoders(layers, folder)
    settings = json.loads((folder / "config.json").read_text())
    for activation in settings["activation"]:
        del activation["threshold"]
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Mistake:
    """One wrong call."""

    name: str
    call: Callable[[Path], object]
    """Gets an empty folder."""
    error: type[Exception]
    says: tuple[str, ...]
    """What the message must hold: what was given, what fits, what to do."""


PROMPTS = [
    Mistake("empty text", lambda _: model().run(""), ValueError, ("''", "empty", "at least one")),
    Mistake("only spaces", lambda _: model().run("  "), ValueError, ("empty", "at least one")),
    Mistake("no ids", lambda _: model().run([]), ValueError, ("[]", "empty", "at least one")),
    Mistake(
        "unknown word",
        lambda _: model().run("When Marie and Zebediah went"),
        ValueError,
        ("'Zebediah'", "'Marie' (nearest: ' Maria'", "vocabulary", "Use words"),
    ),
    Mistake(
        "prompt longer than the context",
        lambda _: model().run([4] * 25),
        ValueError,
        ("25 tokens", "context is 24", "Shorten"),
    ),
    Mistake(
        "batch as lists",
        lambda _: model().run([[4, 5], [6, 7]]),
        ValueError,
        ("a batch of 2", "one prompt", "model.run for each"),
    ),
    Mistake(
        "padded batch as lists",
        lambda _: model().run([[4, 5, 6], [6, 7, 1]]),
        ValueError,
        ("a batch of 2", "one prompt"),
    ),
    Mistake(
        "batch as a tensor",
        lambda _: model().run(torch.tensor([[4, 5], [6, 7]])),
        ValueError,
        ("a batch of 2", "one prompt"),
    ),
    Mistake(
        "batch from a tokenizer",
        lambda _: model().run(tokenizer()(["Mary and", "John went to"])),
        ValueError,
        ("a batch of 2", "one prompt", "model.run for each"),
    ),
    Mistake(
        "padded batch from a tokenizer",
        lambda _: model().run(padded()),
        ValueError,
        ("attention mask", "padded", "unpadded prompt"),
    ),
    Mistake(
        "padding among the ids",
        lambda _: model().run([4, 5, 1, 1]),
        ValueError,
        ("'<pad>', id 1", "[2, 3]", "unpadded prompt"),
    ),
    Mistake(
        "ids too large",
        lambda _: model().run([4, 99999]),
        ValueError,
        ("[99999]", "vocabulary of", "another tokenizer"),
    ),
    Mistake("negative ids", lambda _: model().run([4, -1]), ValueError, ("[-1]", "vocabulary of")),
    Mistake(
        "floats for ids", lambda _: model().run([4.0, 5.5]), TypeError, ("[4.0, 5.5]", "integers")
    ),
    Mistake(
        "float tensor",
        lambda _: model().run(torch.tensor([4.0, 5.5])),
        TypeError,
        ("[4.0, 5.5]", "integers"),
    ),
    Mistake(
        "truth values for ids", lambda _: model().run([True, 4]), TypeError, ("[True]", "integers")
    ),
    Mistake(
        "words as a list",
        lambda _: model().run(["Mary", "and"]),
        TypeError,
        ("['Mary', 'and']", "one string"),
    ),
    Mistake("one id", lambda _: model().run(4), TypeError, ("int", "4", "list of token ids")),
    Mistake("nothing", lambda _: model().run(None), TypeError, ("NoneType", "list of token ids")),
    Mistake(
        "text without a tokenizer",
        lambda _: wordless().run("When Mary"),
        ValueError,
        ("'When Mary'", "without a tokenizer", "token ids", "load(model, tokenizer=...)"),
    ),
]

TARGETS = [
    Mistake(
        "a token that is two tokens",
        lambda _: run().logit(" Mary John"),
        ValueError,
        ("2 tokens", "' Mary' ' John'", "one token", "run.logit(' Mary')", "give ids"),
    ),
    Mistake(
        "an unknown token",
        lambda _: run().logit(" Marry"),
        ValueError,
        ("' Marry'", "Nearest", "' Mary'"),
    ),
    Mistake(
        "an empty token", lambda _: run().logit(""), ValueError, ("''", "Give a token", "its id")
    ),
    Mistake(
        "a token id out of range",
        lambda _: run().logit(99999),
        ValueError,
        ("99999", "vocabulary of"),
    ),
    Mistake(
        "a token that is neither", lambda _: run().logit(4.0), TypeError, ("float: 4.0", "integer")
    ),
    Mistake(
        "a truth value as token", lambda _: run().logit(True), TypeError, ("bool: True", "integer")
    ),
    Mistake(
        "a token as text without a tokenizer",
        lambda _: wordless().run([4, 5]).logit(" Mary"),
        ValueError,
        ("' Mary'", "without a tokenizer", "Give its id", "load(model, tokenizer=...)"),
    ),
    Mistake(
        "position past the end of a logit",
        lambda _: run().logit(" Mary", pos=99),
        IndexError,
        ("position 99", "15 tokens", "0 to 14", "-1 for the last"),
    ),
    Mistake(
        "position before the start",
        lambda _: run().logit(" Mary", pos=-16),
        IndexError,
        ("position -16", "0 to 14"),
    ),
    Mistake(
        "position as text",
        lambda _: run().logit(" Mary", pos="last"),
        TypeError,
        ("'last'", "whole number", "-1 for the last"),
    ),
    Mistake(
        "position as a fraction",
        lambda _: run().logit(" Mary", pos=1.5),
        TypeError,
        ("1.5", "whole number", "-1 for the last"),
    ),
    Mistake(
        "a key after the query",
        lambda _: run().attention_score(0, 1, query=3, key=9),
        ValueError,
        ("query=3, key=9", "does not see", "at or before"),
    ),
    Mistake(
        "a head that does not exist",
        lambda _: run().attention_score(0, 99),
        IndexError,
        ("head=99", "query-key heads", "from 0"),
    ),
    Mistake(
        "a side that does not exist",
        lambda _: run().attention_score(0, 0, side="values"),
        ValueError,
        ("side='values'", "query, key, both"),
    ),
    Mistake(
        "a feature of attention read as heads",
        lambda _: run().feature(0, -1, 3, sublayer="attn"),
        ValueError,
        ("sublayer='attn'", "Lorsa or an autoencoder", "heads"),
    ),
    Mistake(
        "position of a feature",
        lambda _: run().feature(0, 99, 0),
        IndexError,
        ("position 99", "15 tokens"),
    ),
    Mistake(
        "layer of a feature", lambda _: run().feature(2, -1, 0), IndexError, ("layer 2", "0 to 1")
    ),
    Mistake(
        "negative layer", lambda _: run().feature(-1, -1, 0), IndexError, ("layer -1", "0 to 1")
    ),
    Mistake(
        "number of a feature",
        lambda _: run().feature(1, -1, 12),
        IndexError,
        ("index=12", "layer 1 has 12 neurons", "numbered from 0"),
    ),
    Mistake(
        "negative number of a feature",
        lambda _: run().feature(1, -1, -1),
        IndexError,
        ("index=-1", "12 neurons"),
    ),
    Mistake(
        "direction of another width",
        lambda _: run().direction(torch.ones(7), 1),
        ValueError,
        ("8 numbers", "(7,)"),
    ),
    Mistake(
        "direction with NaN",
        lambda _: run().direction(torch.full((8,), torch.nan), 1),
        ValueError,
        ("finite", "8 numbers", "NaN"),
    ),
    Mistake(
        "layer of a direction",
        lambda _: run().direction(torch.ones(8), 3),
        IndexError,
        ("layer 3", "0 to 2"),
    ),
    Mistake(
        "targets of two runs",
        lambda _: run().logit(" Mary") - model().run("Mary and").logit(" John"),
        ValueError,
        ('logit(" Mary")', 'logit(" John")', "different runs", "the same run"),
    ),
    Mistake(
        "a difference, centered",
        lambda _: (run().logit(" Mary") - run().logit(" John")).centered(),
        ValueError,
        ("not a single logit", "run.logit(...)", "as it is"),
    ),
]

TRACES = [
    Mistake(
        "trace of text",
        lambda _: trace(" Mary"),
        TypeError,
        ("str: ' Mary'", "a target", 'run.logit(" Mary")'),
    ),
    Mistake("trace of a run", lambda _: trace(run()), TypeError, ("Run", "run.logit(")),
    Mistake("trace of a number", lambda _: trace(3), TypeError, ("int: 3", "run.logit(")),
    *(
        Mistake(
            f"threshold {wrong!r}",
            lambda _, wrong=wrong: trace(run().logit(" Mary"), threshold=wrong),
            ValueError,
            (f"threshold={wrong!r}", "0 (keep", "default is 0.005"),
        )
        for wrong in (-0.1, float("nan"), float("inf"), "0.01", None)
    ),
    *(
        Mistake(
            f"max_nodes {wrong!r}",
            lambda _, wrong=wrong: trace(run().logit(" Mary"), max_nodes=wrong),
            ValueError,
            (f"max_nodes={wrong!r}", "whole number from 1", "None"),
        )
        for wrong in (0, -3, 1.5, "5", True)
    ),
    Mistake(
        "unknown gate",
        lambda _: trace(run().logit(" Mary"), gate="relative"),
        ValueError,
        ("gate='relative'", '"absolute"', '"signed"'),
    ),
    Mistake(
        "trace with unknown edges",
        lambda _: trace(run().logit(" Mary"), edges="indirect"),
        ValueError,
        ("edges='indirect'", '"flow"', '"direct"', '"both"'),
    ),
    Mistake("plan of text", lambda _: plan(" Mary"), TypeError, ("str: ' Mary'", "run.logit(")),
    Mistake(
        "plan of no nodes",
        lambda _: plan(run().logit(" Mary"), max_nodes=0),
        ValueError,
        ("max_nodes=0", "whole number from 1"),
    ),
    *(
        Mistake(
            f"prune to {wrong!r}",
            lambda _, wrong=wrong: circuit().prune(wrong),
            ValueError,
            (repr(wrong), "above 0 and at most 1", "share=0.8"),
        )
        for wrong in (0, 1.5, -0.2, float("nan"), "0.8")
    ),
    *(
        Mistake(
            f"{wrong!r} paths",
            lambda _, wrong=wrong: circuit().paths(wrong),
            ValueError,
            (repr(wrong), "1 or more"),
        )
        for wrong in (0, 1.5)
    ),
    Mistake(
        "a batch of no knock-outs",
        lambda _: circuit().test(batch=0),
        ValueError,
        ("batch=0", "1 or more"),
    ),
]

FILES = [
    Mistake(
        "save to an unknown ending",
        lambda folder: circuit().save(folder / "ioi.pdf"),
        ValueError,
        ("ioi.pdf", "'.pdf'", ".circuit", ".svg"),
    ),
    Mistake(
        "save without an ending",
        lambda folder: circuit().save(folder / "ioi"),
        ValueError,
        ("ioi", "''", ".circuit", ".svg"),
    ),
    Mistake(
        "save to a missing folder",
        lambda folder: circuit().save(folder / "none" / "ioi.circuit"),
        FileNotFoundError,
        ("no folder", "none", "mkdir -p"),
    ),
    Mistake(
        "save over a folder",
        lambda folder: circuit().save(made(folder / "ioi.circuit")),
        ValueError,
        ("is a folder", "name of a file"),
    ),
    Mistake(
        "read a missing file",
        lambda folder: read(folder / "none.circuit"),
        FileNotFoundError,
        ("none.circuit", "no file", "Check the name"),
    ),
    Mistake("read a folder", lambda folder: read(folder), ValueError, ("not a file", ".circuit")),
    Mistake(
        "read an empty file",
        lambda folder: read(made_file(folder / "a.circuit")),
        ValueError,
        ("a.circuit", "not a zip", "circuit.save"),
    ),
    Mistake(
        "read a text file",
        lambda folder: read(text_file(folder)),
        ValueError,
        ("notes.circuit", "not a zip", "circuit.save"),
    ),
    Mistake(
        "read half a file",
        lambda folder: read(truncated(folder)),
        ValueError,
        ("saved.circuit", "damaged", "copied"),
    ),
    Mistake(
        "read a pickle",
        lambda folder: read(with_pickle(folder)),
        ValueError,
        ("nodes.layer.npy", "not a circuit", "Save the circuit again"),
    ),
    Mistake(
        "read a zip bomb",
        lambda folder: read(bomb(folder)),
        ValueError,
        ("unpack to", "at most", "Save the circuit again"),
    ),
    Mistake(
        "read a newer version",
        lambda folder: read(newer(folder)),
        ValueError,
        ("version 99", "up to", "pip install -U linear-circuits"),
    ),
    Mistake(
        "read NaN",
        lambda folder: read(with_nan(folder)),
        ValueError,
        ("saved.circuit", "nodes.attribution", "finite"),
    ),
    Mistake(
        "test without a model",
        lambda folder: read(saved(folder)).test(),
        ValueError,
        ("has no model", "circuit.attach(load('GPT2LMHeadModel', attention='heads', mlp="),
    ),
    Mistake(
        "attach a model of other weights",
        lambda folder: read(saved(folder)).attach(other_weights()),
        ValueError,
        ("logit([4])", "computes", "'GPT2LMHeadModel'", "model, layers and weights"),
    ),
    Mistake(
        "attach a model of another vocabulary",
        lambda folder: read(saved(folder)).attach(other_vocabulary()),
        ValueError,
        ("vocabulary of 13", "'GPT2LMHeadModel'", "model, layers and weights"),
    ),
    Mistake(
        "attach the model read through other layers",
        lambda folder: read(saved(folder)).attach(load(text_model(), mlp=text_transcoders())),
        ValueError,
        ("'mlp': 'neurons'", "'mlp': 'given'", "model, layers and weights"),
    ),
    Mistake(
        "attach a name",
        lambda folder: read(saved(folder)).attach("four-tasks"),
        TypeError,
        ("'four-tasks'", "load(", "model, layers and weights"),
    ),
]

MODELS = [
    Mistake(
        "a missing folder",
        lambda folder: load(folder / "none"),
        FileNotFoundError,
        ("none", "no such folder", "save_pretrained", *OFFERED),
    ),
    Mistake(
        "a missing folder near here",
        lambda _: load("./none"),
        FileNotFoundError,
        ("'./none'", "no such folder", *OFFERED),
    ),
    Mistake(
        "a folder without config.json",
        lambda folder: load(made_file(folder / "weights.bin").parent),
        ValueError,
        ("no config.json", "found: weights.bin", "save_pretrained"),
    ),
    Mistake(
        "a folder with half a config.json",
        lambda folder: load(broken_config(folder)),
        ValueError,
        ("config.json", "JSON"),
    ),
    Mistake(
        "a config.json of nothing",
        lambda folder: load(made_file(folder / "config.json", "{}").parent),
        ValueError,
        ("cannot be opened", "model_type"),
    ),
    Mistake(
        "a misspelt bundled name",
        lambda _: load("four-task"),
        ValueError,
        ("'four-task'", "Did you mean 'four-tasks'?"),
    ),
    Mistake(
        "a hub name without a network",
        lambda _: load("openai-community/gpt2-nowhere"),
        ValueError,
        ("openai-community/gpt2-nowhere", "cannot be opened", *OFFERED),
    ),
    Mistake(
        "no hub name", lambda _: load("a b"), ValueError, ("'a b'", "cannot be opened", *OFFERED)
    ),
    Mistake("a number", lambda _: load(5), TypeError, ("int: 5", *OFFERED)),
    Mistake(
        "an unknown architecture",
        lambda _: load(in_memory(stable_lm())),
        ValueError,
        ("StableLmForCausalLM", *KNOWN),
    ),
    Mistake(
        "a folder of an unknown architecture",
        lambda folder: load(config_only(folder, stable_lm())),
        ValueError,
        ("StableLmForCausalLM", *KNOWN),
    ),
    Mistake(
        "a module of no family",
        lambda _: load(torch.nn.Linear(2, 2)),
        ValueError,
        ("Linear", *KNOWN),
    ),
    Mistake(
        "a model that reads both ways",
        lambda folder: load(config_only(folder, bert())),
        ValueError,
        ("BertLMHeadModel", *KNOWN),
    ),
    Mistake(
        "a model without a next token",
        lambda folder: load(config_only(folder, ViTConfig(num_hidden_layers=1))),
        ValueError,
        ("ViTConfig", "no causal language model"),
    ),
    Mistake(
        "a mixture of experts",
        lambda _: load(in_memory(mixtral())),
        ValueError,
        ("MixtralForCausalLM", "mixture of experts", "GPT2LMHeadModel"),
    ),
    Mistake(
        "a folder of a mixture of experts",
        lambda folder: load(config_only(folder, mixtral())),
        ValueError,
        ("MixtralForCausalLM", "mixture of experts", "GPT2LMHeadModel"),
    ),
    Mistake(
        "a mixture of experts with attention sinks",
        lambda _: load(in_memory(gpt_oss())),
        ValueError,
        ("GptOssForCausalLM", "mixture of experts", "GPT2LMHeadModel"),
    ),
    Mistake(
        "attention sinks",
        lambda _: load(with_sinks()),
        ValueError,
        ("attention sinks", "transformer.h.1.attn.sinks", "Architectures that fit"),
    ),
    Mistake(
        "a norm on the residual stream",
        lambda _: load(in_memory(first_gpt())),
        ValueError,
        ("OpenAIGPTLMHeadModel", "norm on the residual", "GPT2LMHeadModel"),
    ),
    Mistake(
        "cross-attention",
        lambda _: load(GPT2LMHeadModel(gpt2(add_cross_attention=True))),
        ValueError,
        ("add_cross_attention", "cross-attention to an encoder", "without it"),
    ),
    Mistake(
        "NaN weights",
        lambda _: load(with_nan_weight()),
        ValueError,
        ("transformer.h.1.mlp.c_fc.weight", "1 NaN or infinite", "Load the checkpoint again"),
    ),
    Mistake(
        "half of the weights",
        lambda folder: load(half_copied(folder)),
        ValueError,
        ("weights cannot be read", "again"),
    ),
    Mistake(
        "no weights",
        lambda folder: load(config_only(folder, gpt2())),
        ValueError,
        ("weights cannot be read", "model.safetensors"),
    ),
    Mistake(
        "a weight that is not in the file",
        lambda folder: load(without_a_tensor(folder)),
        ValueError,
        ("lacks 1 weight", "transformer.h.1.mlp.c_fc.weight", "again"),
    ),
    Mistake(
        "weights of another shape",
        lambda folder: load(with_other_settings(folder, n_inner=13)),
        ValueError,
        ("shape", "transformer.h.0.mlp", "again"),
    ),
    Mistake(
        "an activation without a gate",
        lambda folder: load(with_other_settings(folder, activation_function="mish"), mlp="neurons"),
        ValueError,
        ("'mish'", "relu, gelu", "replacement/layers"),
    ),
    Mistake(
        "an activation nobody knows",
        lambda folder: load(with_other_settings(folder, activation_function="wobble")),
        ValueError,
        ("'wobble'", "activation", "config.json"),
    ),
    Mistake(
        "a device nobody knows",
        lambda _: load(text_model(), device="toaster"),
        ValueError,
        ("device='toaster'", '"cpu" always works'),
    ),
    Mistake(
        "a device that is not here",
        lambda _: load(text_model(), device="cuda:63"),
        ValueError,
        ("device='cuda:63'", '"cpu" always works'),
    ),
    *(
        Mistake(
            f"dtype {wrong}",
            lambda _, wrong=wrong: load(text_model(), dtype=wrong),
            ValueError,
            (f"dtype={wrong!r}", "float32 or float64"),
        )
        for wrong in ("bfloat16", "float23", 32)
    ),
    Mistake(
        "unknown attention",
        lambda _: load(text_model(), attention="head"),
        FileNotFoundError,
        ("attention='head'", "Did you mean 'heads'?", '"lorsa"'),
    ),
    Mistake(
        "Lorsa of a model that brings none",
        lambda _: load(text_model(), attention="lorsa"),
        ValueError,
        ("brings no lorsa", 'attention="./lorsa"', 'attention="heads"'),
    ),
    Mistake(
        "a kind of layer for the wrong part",
        lambda _: load(text_model(), attention=text_transcoders()),
        TypeError,
        ("Transcoder", "one layer or None per attention layer"),
    ),
    Mistake(
        "an unknown word in a list",
        lambda _: load(text_model(), attention=["head"]),
        FileNotFoundError,
        ("attention='head'", "Did you mean 'heads'?"),
    ),
    Mistake(
        "errors that is no yes or no",
        lambda _: load(text_model()).run([1], errors=0),
        TypeError,
        ("errors=0", "True", "False"),
    ),
]

LAYERS = [
    Mistake(
        "transcoders of another width",
        lambda _: load(text_model(), mlp=[random_transcoder("topk", d_model=6)] * 2),
        ValueError,
        ("MLP 0", "vectors of 6", "are 8", "another model"),
    ),
    Mistake(
        "one transcoder for two layers",
        lambda _: load(text_model(), mlp=text_transcoders()[:1]),
        ValueError,
        ("1 replacement layers", "2 MLPs", "one per layer"),
    ),
    Mistake(
        "no transcoders",
        lambda _: load(text_model(), mlp=[]),
        ValueError,
        ("0 replacement layers", "2 MLPs"),
    ),
    Mistake(
        "transcoders of another dtype",
        lambda _: load(text_model(), mlp=[random_transcoder("topk")] * 2),
        ValueError,
        ("torch.float64", "torch.float32", "same dtype"),
    ),
    Mistake(
        "numbers for transcoders",
        lambda _: load(text_model(), mlp=[1, 2]),
        TypeError,
        ("mlp=1", "one layer or None per MLP"),
    ),
    Mistake(
        "one transcoder, not a list",
        lambda _: load(text_model(), mlp=text_transcoders()[0]),
        TypeError,
        ("Transcoder", "one layer or None per MLP"),
    ),
    Mistake(
        "BatchTopK with a threshold of NaN",
        lambda _: BatchTopK(float("nan")),
        ValueError,
        ("nan", "threshold", "running mean"),
    ),
    Mistake(
        "BatchTopK without a threshold",
        lambda _: BatchTopK(None),
        ValueError,
        ("None", "threshold", "running mean"),
    ),
    Mistake(
        "a folder of BatchTopK without a threshold",
        lambda folder: load(text_model(), mlp=transcoders_without_threshold(folder)),
        ValueError,
        ("config.json", "no inference threshold", 'Add "threshold"'),
    ),
    Mistake(
        "transcoders where there are none",
        lambda _: load(text_model(), mlp="transcoders"),
        ValueError,
        ('mlp="transcoders"', "./transcoders", 'mlp="neurons"'),
    ),
    Mistake(
        "an unknown folder of transcoders",
        lambda _: load(text_model(), mlp="./none"),
        FileNotFoundError,
        ("none", "no such folder", '"neurons"', "config.json"),
    ),
    Mistake(
        "a misspelt kind",
        lambda _: load(text_model(), mlp="neuron"),
        FileNotFoundError,
        ("neuron", "Did you mean 'neurons'?"),
    ),
    Mistake(
        "a folder that holds no transcoders",
        lambda folder: load(text_model(), mlp=made_file(folder / "ae.pt").parent),
        ValueError,
        ("ae.pt", "cannot be read", "Copy the file again"),
    ),
    Mistake(
        "a folder of a model for transcoders",
        lambda folder: load(text_model(), mlp=save_text_model(folder)),
        ValueError,
        ("config.json", "not a format I know", "linear-circuits", "SAELens"),
    ),
]


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def made_file(path: Path, text: str = "") -> Path:
    path.write_text(text)
    return path


MISTAKES = [*PROMPTS, *TARGETS, *TRACES, *FILES, *MODELS, *LAYERS]


@pytest.fixture(autouse=True)
def as_users_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of the tests, which would refuse first, in words of their own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_every_mistake_has_its_own_name() -> None:
    names = [mistake.name for mistake in MISTAKES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    with pytest.raises(mistake.error) as caught:
        mistake.call(tmp_path)
    message = str(caught.value)
    missing = [words for words in mistake.says if words not in message]
    assert not missing, message
    assert "\n" not in message and len(message) <= LONGEST
    assert "Traceback" not in message
    assert not re.search(r"\bobject at 0x", message), "a memory address helps nobody"
    quiet = caught.value.__suppress_context__ or caught.value.__context__ is None
    assert caught.value.__cause__ is None and quiet, "another exception is shown above this one"


def refuse_to_rename(*_: object, **__: object) -> None:
    raise OSError("no space left on the device")


@pytest.mark.parametrize("ending", [".circuit", ".svg"])
def test_a_failed_save_leaves_what_was_there(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / f"old{ending}", tmp_path / f"new{ending}"
    old.write_text("what was there")
    monkeypatch.setattr(os, "replace", refuse_to_rename)
    for path in (old, new):
        with pytest.raises(OSError, match="no space left"):
            circuit().save(path)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_text() == "what was there"


def test_a_failed_save_of_transcoders_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", refuse_to_rename)
    with pytest.raises(OSError, match="no space left"):
        save_transcoders(text_transcoders(), tmp_path / "layers")
    assert list((tmp_path / "layers").iterdir()) == []
