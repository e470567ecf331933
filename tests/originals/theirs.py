"""Run by an interpreter that has one of the original packages: what their code does with a file.

    python theirs.py PACKAGE FOLDER

FOLDER/cases.json names the files and FOLDER/inputs.safetensors holds what they are given [pos,
d_model]; the features' activations [pos, feature] and the reconstructions [pos, d_model] (of a
cross-layer transcoder all three with a first axis of layers) go to FOLDER/theirs.safetensors, the
package's version to FOLDER/version.txt. Nothing of ours is imported.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def saelens(path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    from sae_lens import SAE

    sae: Any = SAE.load_from_disk(path, device="cpu", dtype="float64")
    scaler = path / "activation_scaler.json"
    if scaler.is_file():
        sae.fold_activation_norm_scaling_factor(json.loads(scaler.read_text())["scaling_factor"])
    activations = sae.encode(x)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # theirs are of unit decoders
        activations = activations / sae.get_W_dec_norm()
    return activations, sae(x)


def circuit_tracer(path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    from circuit_tracer.transcoder.activation_functions import TopK
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    if path.is_dir():
        return across(path, x)
    special = {".npz": "gemma-scope"}.get(path.suffix)
    if path.name == "params.safetensors":
        special = "gemma-scope-2"
    loaded = load_transcoder_set(
        {0: str(path)},
        scan="a/b",
        feature_input_hook="mlp.hook_in",
        feature_output_hook="mlp.hook_out",
        special_load_fn=special,
        device=torch.device("cpu"),
        dtype=torch.float64,
        lazy_encoder=False,
        lazy_decoder=False,
    )
    k = path.with_name("k.txt")
    if k.is_file():  # which their loader of files, unlike their class, does not know
        loaded[0].activation_function = TopK(int(k.read_text()))
    activations = loaded[0].encode(x)
    return activations, loaded[0].decode(activations, x)


def across(path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """A cross-layer transcoder of circuit-tracer; x is [layer, pos, d_model]."""
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt, load_gemma_scope_2_clt

    settings: Any = {"dtype": torch.float64, "device": torch.device("cpu"), "lazy_decoder": False}
    if (path / "W_enc_0.safetensors").is_file():
        coder = load_clt(str(path), **settings)
    else:
        files = [path / f"shard_{number}.safetensors" for number in range(len(x))]
        listed = [*files, files[-1]]  # as published; their code leaves the last one out
        coder = load_gemma_scope_2_clt({i: str(file) for i, file in enumerate(listed)}, **settings)
    activations = coder.encode(x)
    return activations, coder.decode(activations.to_sparse(), x)


def sparsify(path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(path)
    kept = coder.encode(x)
    activations = torch.zeros(len(x), coder.num_latents, dtype=x.dtype)
    activations.scatter_(1, kept.top_indices, kept.top_acts)
    return activations, coder(x).sae_out


def llamascopium(path: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    from llamascopium import SparseDictionary

    # the tables of positions that a file may hold are left out: their code makes its own
    coder: Any = SparseDictionary.from_local(
        str(path), strict_loading=False, device="cpu", dtype=torch.float64
    )
    if x.ndim == 3:
        return llamascopium_across(coder, x)
    reads, writes = coder.cfg.hook_point_in, coder.cfg.hook_point_out
    scales = {hook: coder.compute_norm_factor(x, hook_point=hook) for hook in (reads, writes)}
    activations = coder.encode(x[None] * scales[reads])
    return activations[0], coder.decode(activations)[0] / scales[writes]


def llamascopium_across(coder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Their layers are the second axis of what is read, and the first of what is written."""

    def scales(hooks: list[str]) -> Tensor:
        return torch.stack([coder.compute_norm_factor(x, hook_point=hook) for hook in hooks])

    reads, writes = (
        scales(hooks)[:, None, None] for hooks in (coder.cfg.hooks_in, coder.cfg.hooks_out)
    )
    activations = coder.encode((x * reads).transpose(0, 1))
    return activations.transpose(0, 1), coder.decode(activations) / writes


PACKAGES: dict[str, Callable[[Path, Tensor], tuple[Tensor, Tensor]]] = {
    "sae-lens": saelens,
    "circuit-tracer": circuit_tracer,
    "eai-sparsify": sparsify,
    "llamascopium": llamascopium,
}


def main(package: str, folder: Path) -> None:
    given = load_file(folder / "inputs.safetensors")
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, path in json.loads((folder / "cases.json").read_text()).items():
            activations, output = PACKAGES[package](Path(path), given[name])
            found[f"{name}/activations"] = activations.contiguous()
            found[f"{name}/output"] = output.contiguous()
    save_file(found, folder / "theirs.safetensors")
    (folder / "version.txt").write_text(importlib.metadata.version(package))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
