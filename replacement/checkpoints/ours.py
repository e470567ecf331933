"""Our own folder of transcoders: `config.json` and one `layer_{i}.safetensors` per layer.

Each file holds `read` [feature, d_model], `write` [feature, d_model], `read_bias` [feature],
`write_bias` [d_model] and, where the layer has them, `threshold` [feature] (JumpReLU) and `skip`
[d_model, d_model]. The layers read the normed input of the MLP (gain and bias included) and
reproduce the MLP's output before it is added to the residual stream. Stored in any float type.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from replacement.layers import JumpReLU, Transcoder, activation_from_settings

FORMAT = "linear-circuits transcoders"
VERSION = 1
HOOKS = {"input": "normed MLP input, gain and bias included", "output": "MLP output"}


TENSORS = ("read", "write", "read_bias", "write_bias")


def save_transcoders(
    layers: Sequence[Transcoder], folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write one transcoder per layer to `folder`: all of them, or nothing is changed.

    Raises ValueError for no layers, and for values that `dtype` cannot hold.
    """
    if not layers:
        raise ValueError("save_transcoders: no layers given; one Transcoder per MLP is needed.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "n_layers": len(layers),
        "d_model": layers[0].read.shape[1],
        "activation": [layer.activation.settings() for layer in layers],
        **HOOKS,
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        for number, layer in enumerate(layers):
            stored = _stored_tensors(layer, number, dtype)
            save_file(stored, Path(unfinished) / f"layer_{number}.safetensors")
        (Path(unfinished) / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        for path in sorted(Path(unfinished).iterdir(), reverse=True):  # config.json last
            path.replace(folder / path.name)


def _stored_tensors(layer: Transcoder, number: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies in the file's type (safetensors refuses tensors that share memory)."""
    tensors = {name: getattr(layer, name) for name in TENSORS}
    if layer.skip is not None:
        tensors["skip"] = layer.skip
    if isinstance(layer.activation, JumpReLU):
        tensors["threshold"] = layer.activation.threshold
    stored = {}
    for name, tensor in tensors.items():
        stored[name] = tensor.detach().to(dtype, copy=True).contiguous()
        if not torch.isfinite(stored[name]).all():
            raise ValueError(
                f"layer {number}: {name} holds values that are not finite in {dtype}, largest "
                f"{float(tensor.abs().max()):.3g}. Save in a wider type, such as torch.bfloat16."
            )
    return stored


def load_transcoders(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Transcoder]:
    """Return the transcoders of `folder`, one per layer, in `dtype` on `device`.

    Raises FileNotFoundError for a missing folder or file, ValueError for anything in them that
    does not fit: both say what was found and what was looked for.
    """
    folder = Path(folder)
    config = _read_config(folder)
    return [
        _read_layer(folder / f"layer_{number}.safetensors", config, settings, device, dtype)
        for number, settings in enumerate(config["activation"])
    ]


def _read_config(folder: Path) -> dict:
    path = folder / "config.json"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder of transcoders. Give the folder that holds config.json and "
            'layer_0.safetensors, …, or mlp="neurons" to use the model\'s own neurons.'
        )
    if not path.is_file():
        held = ", ".join(sorted(child.name for child in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{folder}: not a format I know. Found: {held}. Looked for: config.json with "
            f'"format": "{FORMAT}" beside layer_0.safetensors, layer_1.safetensors, …'
        )
    try:
        config = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{path}: not valid JSON ({problem}). Copy the folder again.") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        given = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f'{path}: "format" is {given!r}; this reader knows "{FORMAT}". '
            "Convert the layers with replacement.checkpoints.save_transcoders."
        )
    if config.get("version") != VERSION:
        raise ValueError(
            f"{path}: version {config.get('version')!r}, this library reads version {VERSION}. "
            "Upgrade linear-circuits."
        )
    activations = config.get("activation")
    if not isinstance(activations, list) or len(activations) != config.get("n_layers"):
        raise ValueError(
            f'{path}: "activation" must list the settings of every one of the '
            f'{config.get("n_layers")} layers that "n_layers" promises.'
        )
    return config


def _read_layer(
    path: Path, config: dict, settings: dict, device: torch.device | str, dtype: torch.dtype
) -> Transcoder:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing. config.json lists {len(config['activation'])} layers, one file each."
        )
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as problem:
        raise ValueError(f"{path}: cannot be read ({problem}). Copy the file again.") from None
    _check_tensors(path, tensors, config.get("d_model"))
    converted = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    try:
        activation = activation_from_settings(settings, converted.get("threshold"))
    except ValueError as problem:
        raise ValueError(f"{path.parent / 'config.json'}: {problem}") from None
    if "threshold" in tensors and settings.get("name") != "jumprelu":
        raise ValueError(
            f"{path}: holds a threshold a feature, but config.json says {settings}. Only jumprelu "
            "has one; correct the settings."
        )
    parts = {name: converted[name] for name in TENSORS}
    return Transcoder(**parts, activation=activation, skip=converted.get("skip"))


def _check_tensors(path: Path, tensors: dict[str, Tensor], d_model: object) -> None:
    known = {*TENSORS, "threshold", "skip"}
    missing, unexpected = set(TENSORS) - set(tensors), set(tensors) - known
    if missing or unexpected:
        raise ValueError(
            f"{path}: missing tensors {sorted(missing)}, unexpected {sorted(unexpected)}. "
            f"A layer holds {', '.join(TENSORS)} and optionally threshold, skip."
        )
    n_features = tensors["read_bias"].shape[0] if tensors["read_bias"].dim() else -1
    expected = {
        "read": (n_features, d_model),
        "write": (n_features, d_model),
        "read_bias": (n_features,),
        "write_bias": (d_model,),
        "threshold": (n_features,),
        "skip": (d_model, d_model),
    }
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}; with read_bias of {n_features} "
                f"features and d_model {d_model} in config.json it must be {expected[name]}."
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} is {tensor.dtype}; weights are floating-point.")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds NaN or infinite values. Copy the file again.")
