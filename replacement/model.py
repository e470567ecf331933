"""A Hugging Face model together with what its MLPs and attention are read as."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from replacement.checkpoints.files import all_finite
from replacement.edits import EditedRun, Generated, edited_run, generated
from replacement.families import Family, family_of
from replacement.layers import AttentionSAE, FeatureLayer, HalvedNeurons, Lorsa, ResidualSAE
from replacement.notebook import as_html
from replacement.precision import kept_in, kept_type, with_tensors
from replacement.prompts import token_ids_of, token_text, token_texts
from replacement.recording import run_of_record, substitutes
from replacement.run import Run
from replacement.tracing import Sublayer, Substitute, Tracer
from replacement.weights import ModelWeights, read_weights

STAGE = "residual stage"
WHERE = {Lorsa: "attention layer", AttentionSAE: "attention layer", ResidualSAE: STAGE}
"""What layers are for; all others are for MLPs."""


class ReplacementModel:
    """A language model whose runs can be recorded and made linear.

    The Hugging Face model computes what it computed before: its weights are viewed, not folded, and
    its training flag and attention implementation are as before after every run. (nnsight, which
    records the run, leaves a wrapper of `forward` on its modules that does nothing between runs.)
    """

    def __init__(
        self,
        hf_model: nn.Module,
        tokenizer: Any = None,
        mlps: Sequence[FeatureLayer | None] | None = None,
        attentions: Sequence[Lorsa | AttentionSAE | None] | None = None,
        residuals: Sequence[ResidualSAE | None] | None = None,
        *,
        split: str | None = None,
        name: str = "model in memory",
        read_as: dict[str, Any] | None = None,
    ) -> None:
        """Raise ValueError for an unsupported architecture, unsound weights or layers that misfit.

        `mlps`: one layer per MLP, None for the model's own neurons (there, or everywhere).
        `attentions`: one `Lorsa` or `AttentionSAE` per attention layer, None for the model's own
        heads. `residuals`: one `ResidualSAE` per stage of the residual stream (`2 · layer` enters a
        layer, `2 · layer + 1` its MLP, `2 · n_layers` the final norm), None where the stream stays
        what it is. `split="half"`: neurons of gated MLPs read half of their product through each
        branch; by default all of it through the one that is not gated. `name` and `read_as` (mlp,
        attention, and residual where it is read) are only remembered, for saved circuits to say
        what they came from.
        """
        self.family = family_of(hf_model)
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.name = name
        self.read_as = read_as or {
            "mlp": "neurons" if mlps is None else "given",
            "attention": "heads" if attentions is None else "given",
            **({} if residuals is None else {"residual": "given"}),
            **({} if split is None else {"split": split}),
        }
        _check_weights(hf_model)
        self.weights = read_weights(
            hf_model,
            self.family,
            _fitting("MLP", mlps, hf_model, self.family),
            _fitting("attention layer", attentions, hf_model, self.family),
            _fitting_streams(residuals, hf_model, self.family),
            halved=split is not None,
        )
        _check_split(split, hf_model, self.weights)
        self.tracer = Tracer(hf_model, self.family)

    @property
    def dtype(self) -> torch.dtype:
        """What runs and attribution are computed in."""
        return self.weights.unembedding.dtype

    @property
    def weights_dtype(self) -> torch.dtype:
        """What weights are kept in: `dtype`, or bfloat16."""
        return kept_type(self.weights.unembedding)

    @property
    def device(self) -> torch.device:
        return self.weights.unembedding.device

    @property
    def n_context(self) -> int | None:
        """The longest prompt the model takes; None where positions are not learned."""
        positions = self.weights.position_embedding
        return None if positions is None else positions.shape[0]

    def substitutes(self) -> dict[Sublayer, Substitute]:
        """Return, for one forward pass, what stands in for sublayers read through layers."""
        return substitutes(self.weights)

    def run(self, prompt: Any, *, errors: bool = True) -> Run:
        """Return the recorded run of one prompt: text, chat messages, or token ids.

        Text gets the special tokens its tokenizer adds, but no second BOS where it begins with one.
        Messages (`{"role": …, "content": …}`) are written down by the tokenizer's own chat
        template, up to where the assistant's answer begins; where the last message is the
        assistant's, that one goes on. Token ids are taken as they are, so a prompt can be had with
        or without any special token. Nothing is tokenised twice.

        With `errors` it is the original model that runs, and what the layers miss of it is recorded
        as errors. Without (`errors=False`) the layers stand in for what they replace and the model
        computes the rest: a true replacement run, whose logits are not the original's. Raises
        ValueError or TypeError for anything but one unpadded prompt within the model's context.

        >>> from circuits import load
        >>> model = load("four-tasks")
        >>> run = model.run("When Mary went")
        >>> run.tokens
        ['<bos>', ' When', ' Mary', ' went']
        >>> model.run(run.token_ids[1:]).tokens
        [' When', ' Mary', ' went']
        """
        return self.runs([prompt], errors=errors)[0]

    def runs(self, prompts: Sequence[Any], *, errors: bool = True) -> list[Run]:
        """Return the recorded runs of several prompts, those of one length in one forward pass.

        Several short prompts together are faster than one by one. Numbers are those of `run` up to
        rounding: products of other shapes add up in another order. The runs of one pass keep each
        other's tensors in memory. Otherwise as `run`.

        >>> from circuits import load
        >>> [len(run.tokens) for run in load("four-tasks").runs(["When Mary", "When", "When John"])]
        [3, 2, 3]
        """
        if not isinstance(errors, bool):
            raise TypeError(f"model.run(errors={errors!r}): True (the default) or False.")
        if isinstance(prompts, str):
            raise TypeError(f"model.runs({prompts!r:.60}): a list of prompts; model.run takes one.")
        asked = [
            token_ids_of(
                prompt, self.tokenizer, d_vocab=self.weights.d_vocab, n_context=self.n_context
            )
            for prompt in prompts
        ]
        by_length: dict[int, list[int]] = {}
        for number, ids in enumerate(asked):
            by_length.setdefault(len(ids), []).append(number)
        made: dict[int, Run] = {}
        for together in by_length.values():
            batch = torch.stack([asked[number] for number in together]).to(self.device)
            with torch.no_grad():
                records = self.tracer.record(batch, {} if errors else self.substitutes())
                for number, record in zip(together, records, strict=True):
                    prompt, ids = prompts[number], asked[number]
                    made[number] = run_of_record(
                        record,
                        self.weights,
                        ids,
                        model=self,
                        prompt=prompt if isinstance(prompt, str) else None,
                        tokens=token_texts(ids, self.tokenizer),
                        errors=errors,
                    )
        return [made[number] for number in range(len(asked))]

    def edited(self, run: Run, edits: Any, mode: Any) -> EditedRun:
        """Return a run of this model under edits; see `Run.edited`."""
        return edited_run(run, edits, mode)

    def generate(
        self, prompt: Any, *, edits: Any = (), max_new_tokens: int = 20, errors: bool = True
    ) -> Generated:
        """Return the likeliest continuation of a prompt, under edits (docs/edits.md).

        At every step the likeliest token, until the end-of-text token of the model's
        `generation_config` or `max_new_tokens`; without edits what
        `hf_model.generate(do_sample=False)` gives. Edits whose positions have no end
        (`positions="all"`, `slice(7, None)`) hold for generated tokens too; `Scale` multiplies what
        a node is there. `errors`: as in `run`. Raises as `run` and `Run.edited`, before anything
        runs, and ValueError for more tokens than the model's context holds.

        >>> from circuits import load
        >>> load("four-tasks").generate(
        ...     "When Mary and John went to the store, John gave a drink to", max_new_tokens=1
        ... ).text
        ' Mary'
        """
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(
                f"model.generate(max_new_tokens={max_new_tokens!r}): how many tokens at most, 1 or "
                "more."
            )
        run = self.run(prompt, errors=errors)
        if self.n_context is not None and len(run.tokens) + max_new_tokens > self.n_context:
            raise ValueError(
                f"model.generate(max_new_tokens={max_new_tokens}): the prompt has "
                f"{len(run.tokens)} tokens and the model's context is {self.n_context}. Ask for "
                f"{self.n_context - len(run.tokens)} at most."
            )
        settings: Any = self.hf_model.generation_config
        end = settings.eos_token_id
        ends = end if isinstance(end, list) else [] if end is None else [end]
        return generated(run, edits, max_new_tokens, ends, self.tokenizer)

    def token_text(self, token_id: int) -> str:
        """Return a token in quotes, or its id in brackets where there is no tokenizer."""
        if self.tokenizer is None:
            return f"[{token_id}]"
        return f'"{token_text(token_id, self.tokenizer)}"'

    def __repr__(self) -> str:
        weights = self.weights
        return (
            f"ReplacementModel({self.name}: {weights.n_layers} layers, width {weights.d_model}, "
            + "".join(f"{part}={_listed(name)}, " for part, name in self.read_as.items())
            + f"{str(self.weights_dtype).removeprefix('torch.')} on {self.device})"
        )

    def _repr_html_(self) -> str:
        """What it is, and what its parts are read as."""
        weights = self.weights
        facts = {
            **{part: _listed(name) for part, name in self.read_as.items()},
            "model": type(self.hf_model).__name__,
            "vocabulary": f"{weights.d_vocab:,} tokens",
            "context": "any" if self.n_context is None else f"{self.n_context:,} tokens",
        }
        return as_html(repr(self), {"part": list(facts), "is": list(facts.values())})


def _listed(name: str | list[str]) -> str:
    return name if isinstance(name, str) else "+".join(name)


def _check_split(split: str | None, model: nn.Module, weights: ModelWeights) -> None:
    if split not in (None, "half"):
        raise ValueError(
            f'split={split!r}: "half" reads gated neurons through both branches; leave it out for '
            "the branch that is not gated."
        )
    if split and not any(isinstance(layer.mlp, HalvedNeurons) for layer in weights.layers):
        raise ValueError(
            f'split="half" is for neurons of gated MLPs, and {type(model).__name__} has none that '
            'are read as neurons here. Leave split out, or give mlp="neurons" for a model with '
            "gated MLPs (Llama, Mistral, Qwen, Gemma)."
        )


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"the weight {name} is on the meta device, so it has no numbers. Load the model "
                "with its weights."
            )
        if not parameter.is_floating_point():
            raise ValueError(
                f"the weight {name} is stored as {parameter.dtype}: a quantised model, whose "
                "weights are not the numbers that are multiplied. Load it in a floating-point type."
            )
        if not all_finite(parameter.detach()):
            count = int((~torch.isfinite(parameter)).sum())
            raise ValueError(
                f"the weight {name} holds {count} NaN or infinite values, so every number would be "
                "NaN. Load the checkpoint again, or find where training diverged."
            )


def _detached(part: Any) -> Any:
    """A layer without gradients, as the model's own weights are read; no matrix is copied."""
    return with_tensors(part, lambda one: kept_in(one.detach(), kept_type(one)))


def _check_targets(number: int, layer: FeatureLayer, layers: Sequence[Any]) -> None:
    """Raise ValueError unless the MLPs that a cross-layer transcoder writes to are rebuilt too."""
    reached = range(number, number + layer.n_targets)
    if layer.write.shape[1] % layer.read.shape[1] or reached.stop > len(layers):
        raise ValueError(
            f"the replacement layer of MLP {number} reads vectors of {layer.read.shape[1]} and "
            f"writes {layer.write.shape[1]} numbers, which are not whole vectors for MLPs up to "
            f"{len(layers) - 1}. Layers trained for another model?"
        )
    own = [other for other in reached if layers[other] is None or layers[other].exact]
    if own:
        raise ValueError(
            f"the cross-layer transcoder of MLP {number} writes to MLP {own[0]}, which is read as "
            "the model's own neurons; they leave nothing for it to write. Give all its layers."
        )


def _fitting_streams(layers: Any, model: nn.Module, family: Family) -> dict[int, ResidualSAE]:
    """The SAEs of the residual stream by stage; ValueError for what does not fit."""
    fitting = enumerate(_fitting(STAGE, layers, model, family))
    found = {stage: layer for stage, layer in fitting if layer is not None}
    middle = [stage for stage in found if stage % 2]
    if middle and family.parallel(model.config):
        raise ValueError(
            f"a ResidualSAE was given for stage {middle[0]}, between attention and MLP of layer "
            f"{middle[0] // 2}: {type(model).__name__} runs both beside each other on the stream "
            "that enters the layer, so there is no such place. Give one of stages 0, 2, 4, …"
        )
    return found


def _fitting(what: str, layers: Any, model: nn.Module, family: Family) -> Sequence[Any]:
    """One layer or None for each of the model's sublayers; ValueError for what does not fit."""
    blocks: Any = model.get_submodule(family.layers)
    unembedding: Any = model.get_submodule(family.unembedding)
    d_model, dtype = unembedding.weight.shape[1], unembedding.weight.dtype
    count, each = (2 * len(blocks) + 1, "stage") if what == STAGE else (len(blocks), "layer")
    if layers is None:
        return [None] * count
    if len(layers) != count:
        raise ValueError(
            f"{len(layers)} replacement layers for a model of {count} {what}s: one per {each} is "
            f"needed, first {each} first (None where the model's own parts are to be the nodes)."
        )
    layers = [_detached(layer) for layer in layers]
    for number, layer in enumerate(layers):
        if layer is None:
            continue
        if WHERE.get(type(layer), "MLP") != what:
            raise ValueError(
                f"a {type(layer).__name__} was given for {what} {number}: Lorsa and AttentionSAE "
                "read attention, transcoders MLPs, and a ResidualSAE the residual stream."
            )
        if isinstance(layer, AttentionSAE) and layer.after_post_norm and family.attention_post_norm:
            raise ValueError(
                f"the AttentionSAE of {what} {number} reads what comes out of the norm after "
                f"attention ({family.attention_post_norm}), which is not covered: one that reads "
                "what attention itself computes is."
            )
        if what == "MLP":
            _check_targets(number, layer, layers)
        widths = [layer.read.shape[1], layer.write.shape[1] // layer.n_targets]
        if isinstance(layer, Lorsa):
            widths += [layer.query_key.query.shape[1], layer.query_key.key.shape[1]]
        if set(widths) != {d_model}:
            raise ValueError(
                f"the replacement layer of {what} {number} reads vectors of {widths[0]} and writes "
                f"vectors of {widths[1]}, the model's are {d_model}. Layers trained for another "
                "model?"
            )
        if (layer.read.dtype, layer.read.device) != (dtype, unembedding.weight.device):
            raise ValueError(
                f"the replacement layer of {what} {number} is {layer.read.dtype} on "
                f"{layer.read.device}, the model {dtype} on {unembedding.weight.device}. Load both "
                "in the same dtype on the same device."
            )
    return layers
