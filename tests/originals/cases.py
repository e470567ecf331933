"""Small files in the layouts of four packages, each with the input that both sides are given.

They are made so that the layer's input is what its hook holds: what hooks mean in a model is tested
beside the formats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replacement.checkpoints import load_openmoss_lorsa
from tests.replacement import (
    layers_made,
    test_checkpoints_openmoss,
    test_format_across,
    test_format_circuit_tracer,
    test_format_gemma_scope,
    test_format_openmoss,
    test_format_residual,
    test_format_saelens,
    test_format_sparsify,
)
from tests.replacement.formats_made import D_MODEL, N_FEATURES, N_LAYERS, inputs, norms, only, read


@dataclass(frozen=True)
class Original:
    """One file: how it is written, and how it is read by us."""

    package: str
    write: Callable[[Path], Path]
    """From an empty folder to what the original is to open."""
    read: Callable[[Path], Any]
    """From the same folder to our layer, or all layers of a cross-layer transcoder."""
    x: Tensor
    """[pos, d_model]; of a cross-layer transcoder [layer, pos, d_model]"""


def _layer(**given: Any) -> Callable[[Path], Any]:
    return lambda folder: only(folder, **given)[1]


def _saelens(architecture: str, *, scaler: str = "", **settings: Any) -> Original:
    made = test_format_saelens
    base = made.TRANSCODER if architecture.endswith("transcoder") else made.SAE
    config = {**base, "architecture": architecture, "device": "cpu", **settings}
    if architecture == "topk":
        config["k"] = made.K

    def write(folder: Path) -> Path:
        if scaler:
            (folder / "activation_scaler.json").write_text(scaler)
        return made.their_folder(folder, config, made.their_tensors(config))

    return Original("sae-lens", write, _layer(), inputs())


def _circuit_tracer(*, threshold: bool = False, skip: bool, k: int | None = None) -> Original:
    made = test_format_circuit_tracer
    tensors = made.their_tensors(1, threshold=threshold, skip=skip)
    config = made.CONFIG if k is None else {**made.CONFIG, "activation": "topk", "k": k}

    def write(folder: Path) -> Path:
        file = made.their_folder(folder, config, [tensors]) / "layer_0.safetensors"
        if k is not None:
            file.with_name("k.txt").write_text(str(k))
        return file

    return Original("circuit-tracer", write, _layer(), inputs())


def _gemma_scope() -> Original:
    made = test_format_gemma_scope
    return Original(
        "circuit-tracer",
        lambda folder: made.scope_file(folder, made.scope_tensors()),
        _layer(hooks=made.HOOKS, norms=norms("layer")),
        inputs(),
    )


def _gemma_scope_2(*, skip: bool) -> Original:
    made = test_format_gemma_scope
    config = {**made.CONFIG_2, "affine_connection": skip}

    def write(folder: Path) -> Path:
        tensors = made.scope_2_tensors(skip=skip)
        return made.scope_2_folder(folder, config, tensors) / "params.safetensors"

    return Original("circuit-tracer", write, _layer(), inputs())


ACROSS = torch.stack([inputs(number) for number in range(N_LAYERS)])


def _across(package: str, write: Callable[[Path], Path]) -> Original:
    return Original(package, write, lambda folder: read(folder)[1], ACROSS.clone())


def _openmoss_across(act_fn: str, *, gated: bool, norm: str) -> Original:
    made = test_format_across
    config = {
        **made.MOSS,
        "expansion_factor": N_FEATURES / D_MODEL,
        "act_fn": act_fn,
        "sparsity_include_decoder_norm": gated,
        "norm_activation": norm,
    }
    return _across("llamascopium", lambda folder: made.moss_folder(folder, config))


def _residual(package: str, name: str) -> Original:
    made = test_format_residual.THEIRS[name]
    return Original(package, lambda folder: made.write(folder, made.tensors()), _layer(), inputs())


def _sparsify(module: str, config: dict[str, Any]) -> Original:
    made = test_format_sparsify
    return Original(
        "eai-sparsify",
        lambda folder: made.their_folder(folder / module, config, made.their_tensors(config)),
        _layer(),
        inputs(),
    )


def _openmoss(act_fn: str, *, gated: bool, norm: str) -> Original:
    made = test_format_openmoss
    config = {
        **made.CONFIG,
        "act_fn": act_fn,
        "sparsity_include_decoder_norm": gated,
        "norm_activation": norm,
    }
    return Original(
        "llamascopium",
        lambda folder: made.their_folder(folder, config, made.their_tensors(config)),
        _layer(norms=norms("layer")),
        inputs(),
    )


def _lorsa(name: str) -> Original:
    made = test_checkpoints_openmoss
    config, tensors = made.case_of(name)
    for buffer in ("mask", "IGNORE", "rotary_sin", "rotary_cos"):
        tensors.pop(buffer, None)
    return Original(
        "llamascopium",
        lambda folder: made.their_folder(folder, config, tensors),
        lambda folder: load_openmoss_lorsa(folder, dtype=layers_made.inputs(5).dtype)[1],
        layers_made.inputs(5),
    )


SPARSIFY = test_format_sparsify.CONFIG
ORIGINALS: dict[str, Original] = {
    **{
        f"SAELens {architecture}{', shifted' if shifted else ''}": _saelens(
            architecture, apply_b_dec_to_input=shifted
        )
        for architecture in ("standard", "topk", "jumprelu")
        for shifted in (False, True)
    },
    **{
        f"SAELens {architecture}": _saelens(architecture)
        for architecture in test_format_saelens.TRANSCODERS
    },
    "SAELens topk, gate by decoder norm": _saelens("topk", rescale_acts_by_decoder_norm=True),
    **{
        f"SAELens {architecture}, scale not folded": _saelens(
            architecture,
            scaler='{"scaling_factor": 0.4}',
            normalize_activations="expected_average_only_in",
        )
        for architecture in ("standard", "topk", "jumprelu")
    },
    **{
        f"circuit-tracer {'jumprelu' if threshold else 'relu'}{', skip' if skip else ''}": (
            _circuit_tracer(threshold=threshold, skip=skip)
        )
        for threshold in (False, True)
        for skip in (False, True)
    },
    **{
        f"circuit-tracer topk{', skip' if skip else ''}": _circuit_tracer(skip=skip, k=4)
        for skip in (False, True)
    },
    **{
        f"circuit-tracer across layers, {'jumprelu' if jump else 'relu'}": _across(
            "circuit-tracer",
            lambda folder, jump=jump: test_format_across.tracer_folder(
                folder, test_format_across.TRACER, jump=jump
            ),
        )
        for jump in (False, True)
    },
    "circuit-tracer across layers, Gemma Scope 2": _across(
        "circuit-tracer", test_format_across.scope_folder
    ),
    "circuit-tracer, Gemma Scope": _gemma_scope(),
    "circuit-tracer, Gemma Scope 2": _gemma_scope_2(skip=False),
    "circuit-tracer, Gemma Scope 2, skip": _gemma_scope_2(skip=True),
    "sparsify": _sparsify("layers.1.mlp", {**SPARSIFY, "skip_connection": False}),
    "sparsify, skip": _sparsify("layers.1.mlp", SPARSIFY),
    "sparsify, attention": _sparsify("layers.1.self_attn", test_format_sparsify.SAE),
    "SAELens, residual stream": _residual("sae-lens", "SAELens, leaving a layer"),
    "sparsify, residual stream": _residual("eai-sparsify", "sparsify"),
    "OpenMOSS, residual stream": _residual("llamascopium", "OpenMOSS"),
    **{
        f"OpenMOSS across layers, {act_fn}, {norm}{', gate by decoder norm' if gated else ''}": (
            _openmoss_across(act_fn, gated=gated, norm=norm)
        )
        for act_fn in ("relu", "topk", "jumprelu")
        for norm in ("inference", "dataset-wise")
        for gated in (False, True)
    },
    **{
        f"OpenMOSS {act_fn}, {norm}{', gate by decoder norm' if gated else ''}": _openmoss(
            act_fn, gated=gated, norm=norm
        )
        for act_fn in ("relu", "topk", "jumprelu")
        for norm in ("inference", "dataset-wise")
        for gated in (False, True)
    },
    **{
        f"Lorsa {name}": _lorsa(name)
        for name, changes in test_checkpoints_openmoss.CASES.items()
        # theirs pools batchtopk over the batch, and this version knows no windows
        if changes.get("act_fn") != "batchtopk" and "window_size" not in changes
    },
}
