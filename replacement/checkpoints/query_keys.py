"""The query-key heads of Lorsa in a folder of ours: which tensors, which settings."""

from typing import Any

from torch import Tensor

from replacement.layers import HeadNorm, QueryKey, Rotary

QUERY_KEY_REQUIRED = {"query": "head d_model d_head", "key": "key_head d_model d_head"}
QUERY_KEY_OPTIONAL = {
    "query_bias": "head d_head",
    "key_bias": "key_head d_head",
    "query_norm": "head d_head",
    "key_norm": "key_head d_head",
    "inverse_frequency": "pair",
}
EXACT = ("inverse_frequency",)
"""Kept in their own type: positions multiply them, and their rounding errors too."""
POSITIVE = "a number > 0"
SETTINGS = {
    "scale": POSITIVE,
    "window": "a whole number > 0, or null",
    "query_norm_eps": "a number >= 0, or null without query_norm",
    "key_norm_eps": "a number >= 0, or null without key_norm",
    "adjacent": "true or false, or null without inverse_frequency",
    "amplitude": f"{POSITIVE}, or null without inverse_frequency",
}
"""Every entry of the settings, and what it may be."""
SOFT_CAP = "soft_cap"
"""A further entry where scores are squeezed before the softmax (Gemma-2): a number > 0."""


def query_key_tensors(heads: QueryKey) -> dict[str, Tensor | None]:
    """Return the tensors of query-key heads by their name in a file; None where there is none."""
    return {
        "query": heads.query,
        "key": heads.key,
        "query_bias": heads.query_bias,
        "key_bias": heads.key_bias,
        "query_norm": None if heads.query_norm is None else heads.query_norm.gain,
        "key_norm": None if heads.key_norm is None else heads.key_norm.gain,
        "inverse_frequency": None if heads.rotary is None else heads.rotary.inverse_frequency,
    }


def query_key_settings(heads: QueryKey) -> dict[str, Any]:
    """Return the numbers of query-key heads, null where there is no such part."""
    capped = {} if heads.soft_cap is None else {SOFT_CAP: heads.soft_cap}
    return capped | {
        "scale": heads.scale,
        "window": heads.window,
        "query_norm_eps": None if heads.query_norm is None else heads.query_norm.eps,
        "key_norm_eps": None if heads.key_norm is None else heads.key_norm.eps,
        "adjacent": None if heads.rotary is None else heads.rotary.adjacent,
        "amplitude": None if heads.rotary is None else heads.rotary.amplitude,
    }


def query_key_from(settings: dict[str, Any], tensors: dict[str, Tensor]) -> QueryKey:
    """Return query-key heads from tensors and settings.

    Raises ValueError for unknown, missing or ill-typed settings, parts without their tensor (or
    the other way round), and head counts that do not divide.
    """
    if set(settings) - {SOFT_CAP} != set(SETTINGS):
        raise ValueError(
            f'"query_key" holds {", ".join(settings)}; it must hold exactly {", ".join(SETTINGS)}. '
            "Correct it, or upgrade linear-circuits."
        )
    _check_values(settings, tensors)
    soft_cap = settings.get(SOFT_CAP)
    if SOFT_CAP in settings and (soft_cap is None or not _fits(SOFT_CAP, soft_cap, None)):
        raise ValueError(f'"query_key": {SOFT_CAP} is {soft_cap!r}; it must be {POSITIVE}.')
    heads, key_heads = tensors["query"].shape[0], tensors["key"].shape[0]
    if not key_heads or heads % key_heads:
        raise ValueError(
            f"{heads} query heads cannot share {key_heads} key heads equally. Correct query or key."
        )
    rotary = None
    if "inverse_frequency" in tensors:
        d_head = tensors["query"].shape[2]
        rotary = Rotary(
            tensors["inverse_frequency"], settings["adjacent"], float(settings["amplitude"])
        )
        if rotary.width > d_head:
            raise ValueError(
                f"inverse_frequency turns {rotary.width} coordinates, a head has {d_head}. Give "
                "one frequency per pair of rotated coordinates."
            )
    return QueryKey(
        query=tensors["query"],
        key=tensors["key"],
        query_bias=tensors.get("query_bias"),
        key_bias=tensors.get("key_bias"),
        scale=float(settings["scale"]),
        rotary=rotary,
        query_norm=_norm(tensors.get("query_norm"), settings["query_norm_eps"]),
        key_norm=_norm(tensors.get("key_norm"), settings["key_norm_eps"]),
        window=settings["window"],
        soft_cap=None if soft_cap is None else float(soft_cap),
    )


def _check_values(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    needed = {
        "query_norm_eps": "query_norm" in tensors,
        "key_norm_eps": "key_norm" in tensors,
        "adjacent": "inverse_frequency" in tensors,
        "amplitude": "inverse_frequency" in tensors,
    }
    for name, fits in SETTINGS.items():
        if not _fits(name, settings[name], needed.get(name)):
            raise ValueError(f'"query_key": {name} is {settings[name]!r}; it must be {fits}.')


def _fits(name: str, value: object, needed: bool | None) -> bool:
    """Whether a setting has a value of its kind; null exactly where it is not needed."""
    if value is None:
        return name == "window" or needed is False
    if needed is False:
        return False
    if name == "adjacent":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int if name == "window" else int | float):
        return False
    return 0 <= value < float("inf") if name.endswith("_eps") else 0 < value < float("inf")


def _norm(gain: Tensor | None, eps: int | float | None) -> HeadNorm | None:
    return None if gain is None or eps is None else HeadNorm(gain, float(eps))
