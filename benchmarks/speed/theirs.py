"""Run by an interpreter that has circuit-tracer: its attribution call, timed.

    python -m benchmarks.speed.theirs

The folder it runs in is what `peer.py` writes: model/, a GPT-2 folder; layer_0.safetensors, …, ReLU
transcoders in circuit-tracer's format; prompt.json, token ids. Every line of input asks for one
attribution of so many tokens; every line of output answers one. Rows go to the file it names.
TransformerLens guesses an architecture from the model's path ("t5" anywhere in it will do), so the
path is one word. Of ours only the clock is imported.
"""

import importlib.metadata
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.speed.clock import clocked_with_memory


def loaded(folder: Path) -> Any:
    """Return their model of the folder."""
    from circuit_tracer import ReplacementModel  # pyright: ignore[reportMissingImports]
    from circuit_tracer.utils.hf_utils import load_transcoders  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformer_lens import loading_from_pretrained  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # their loader knows published names only, though it can read a folder
    loading_from_pretrained.get_official_model_name = lambda name: name
    model = folder / "model"
    first, n_tokens = json.loads((folder / "prompt.json").read_text())[0], _vocabulary(model)
    words = WordLevel({f"t{number}": number for number in range(n_tokens)}, unk_token="t0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token=f"t{first}")
    tokenizer.save_pretrained(model)
    layers = sorted(folder.glob("layer_*.safetensors"), key=lambda path: int(path.stem[6:]))
    config = {
        "model_kind": "transcoder_set",
        "scan": "random/random",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "transcoders": [str(path) for path in layers],
    }
    tokenizer, cpu = AutoTokenizer.from_pretrained(model), torch.device("cpu")
    transcoders = load_transcoders(config, cpu, lazy_encoder=False, lazy_decoder=False)
    return ReplacementModel.from_pretrained_and_transcoders(
        model_name=str(model), transcoders=transcoders, tokenizer=tokenizer, device=cpu
    )


def answer(model: Any, folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return what one attribution took, and its logits; rows are written where asked for."""
    from circuit_tracer import attribute  # pyright: ignore[reportMissingImports]

    prompt = json.loads((folder / "prompt.json").read_text())[: asked["tokens"]]
    named: dict[str, Any] = {"max_feature_nodes": asked["targets"], "verbose": False}
    if asked["batch"] is not None:
        named["batch_size"] = asked["batch"]
    graph, *cost = clocked_with_memory(lambda: attribute(torch.tensor(prompt), model, **named))
    assert graph.input_tokens.tolist() == prompt, "their tokenizer changed the prompt"
    chosen = graph.active_features[graph.selected_features]
    n_logits, width = len(graph.logit_targets), len(graph.adjacency_matrix)
    rows = torch.cat([torch.arange(len(chosen)), torch.arange(width - n_logits, width)])
    kept = {
        "features": chosen,
        "logits": torch.tensor([target.vocab_idx for target in graph.logit_targets]),
        "rows": graph.adjacency_matrix[rows, : width - n_logits],
    }
    save_file({name: table.contiguous() for name, table in kept.items()}, folder / asked["to"])
    return dict(zip(("seconds", "CPU seconds", "memory growth, MB"), cost, strict=True))


def _vocabulary(model: Path) -> int:
    return json.loads((model / "config.json").read_text())["vocab_size"]


def main(folder: Path) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what their packages print is no answer
    warnings.simplefilter("ignore")
    model = loaded(folder)
    version = importlib.metadata.version("circuit-tracer")
    answers.write(json.dumps({"version": version}) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(answer(model, folder, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path())
