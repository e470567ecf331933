"""Models that cannot be loaded."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

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

from circuits import load
from tests.circuits.folders import save_text_model, text_model, text_transcoders
from tests.errors.mistakes import Mistake, assert_explained, each, made_file

KNOWN = ("GPT2LMHeadModel", "docs/architectures.md")
OFFERED = ("four-tasks", "hub name")


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


def pointer(path: Path) -> Path:
    """What a clone without git-lfs leaves in a file's place."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 440\n")
    return path


def without_a_shard(folder: Path) -> Path:
    """Weights in two files, one of which was not downloaded."""
    whole = save_text_model(folder) / "model.safetensors"
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    tensors = load_file(whole)
    of_file = {name: files[number % 2] for number, name in enumerate(tensors)}
    index = {"metadata": {}, "weight_map": of_file}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    held = {name: tensor for name, tensor in tensors.items() if of_file[name] == files[0]}
    save_file(held, folder / files[0], metadata={"format": "pt"})
    whole.unlink()
    return folder


def quantised() -> GPT2LMHeadModel:
    model = text_model()
    weight = model.transformer.h[0].mlp.c_fc.weight
    whole = torch.nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    model.transformer.h[0].mlp.c_fc.weight = whole
    return model


def other_activation() -> GPT2LMHeadModel:
    """Its MLPs compute something else than its config says."""
    model = text_model()
    model.transformer.h[0].mlp.act = torch.nn.ReLU()
    return model


def broken_config(folder: Path) -> Path:
    (save_text_model(folder) / "config.json").write_text('{"model_type": "gpt2",')
    return folder


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
        "a pointer in the place of weights",
        lambda folder: load(pointer(save_text_model(folder) / "model.safetensors").parent),
        ValueError,
        ("model.safetensors: cannot be read", "git-lfs", "git lfs pull"),
    ),
    Mistake(
        "a file in the place of a folder",
        lambda folder: load(save_text_model(folder) / "model.safetensors"),
        ValueError,
        ("is a file", "give the folder it is in"),
    ),
    Mistake(
        "a quantised checkpoint",
        lambda folder: load(
            with_other_settings(folder, quantization_config={"quant_method": "gptq", "bits": 4})
        ),
        ValueError,
        ("a quantised checkpoint (gptq)", "Load the model that it was made from"),
    ),
    Mistake(
        "a broken tokenizer",
        lambda folder: load(made_file(save_text_model(folder) / "tokenizer.json", "{").parent),
        ValueError,
        ("its tokenizer (tokenizer.json", "cannot be read", "tokenizer=..."),
    ),
    Mistake(
        "a file of weights is missing",
        lambda folder: load(without_a_shard(folder)),
        ValueError,
        ("weights cannot be read", "model-00002-of-00002.safetensors", "again"),
    ),
    Mistake(
        "an adapter without its model",
        lambda folder: load(made_file(folder / "adapter_config.json", "{}").parent),
        ValueError,
        ("an adapter (adapter_config.json)", "merge_and_unload().save_pretrained"),
    ),
    Mistake(
        "a model with code of its own",
        lambda folder: load(
            with_other_settings(folder, model_type="mine", auto_map={"AutoConfig": "code.Config"})
        ),
        ValueError,
        ("cannot be opened", "custom code of its own, which is never run", *OFFERED),
    ),
    Mistake(
        "a model without its weights in memory",
        lambda _: load(text_model().to("meta")),
        ValueError,
        ("transformer.wte.weight", "meta device", "Load the model"),
    ),
    Mistake(
        "a quantised model",
        lambda _: load(quantised()),
        ValueError,
        ("transformer.h.0.mlp.c_fc.weight", "torch.int8", "floating-point type"),
    ),
    Mistake(
        "a model that does not do what its config says",
        lambda _: load(other_activation()),
        ValueError,
        ("neurons of layer 0", "off by", "GPT2LMHeadModel", "docs/architectures.md"),
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
        for wrong in ("float16", "float23", 32)
    ),
    Mistake(
        "weights kept in bfloat16 changed in place",
        lambda _: load(text_model(), dtype="bfloat16").hf_model.lm_head.weight.mul_(2),
        RuntimeError,
        ("kept in bfloat16", "Load the model in float32"),
    ),
    Mistake(
        "weights kept in bfloat16 saved",
        lambda folder: load(text_model(), dtype="bfloat16").hf_model.save_pretrained(folder),
        RuntimeError,
        ("cannot be saved", 'Save load(model.hf_model, dtype="float32").hf_model'),
    ),
    Mistake(
        "unknown attention",
        lambda _: load(text_model(), attention="head"),
        ValueError,
        ("attention='head'", "Nearest: 'heads'", '"lorsa"'),
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
        ("attention=[…]), entry 0: a Transcoder. Give", "one layer or None per attention layer"),
    ),
    Mistake(
        "an unknown word in a list",
        lambda _: load(text_model(), attention=["head"]),
        ValueError,
        ("attention='head'", "Nearest: 'heads'"),
    ),
    Mistake(
        "errors that is no yes or no",
        lambda _: load(text_model()).run([1], errors=0),
        TypeError,
        ("errors=0", "True", "False"),
    ),
]


@each(MODELS)
def test_a_mistake_is_explained_in_one_paragraph(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)


def test_libraries_that_change_under_us_are_bounded() -> None:
    """Newer ones than were tried are refused by the installer, not met in the middle of a run."""
    ours = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    bounds = {
        re.split(r"[<>=]", one)[0]: one for one in ours["project"]["dependencies"] if "<" in one
    }
    assert {"nnsight", "transformers"} <= set(bounds)
    assert all(">=" in bound for bound in bounds.values())
