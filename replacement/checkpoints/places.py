"""Where in a model a dictionary of another project reads and writes, from what its files say.

Hook strings are parsed whole, never searched for parts: one that is not known is an error.
"""

import re
from dataclasses import dataclass
from typing import Literal

Point = Literal[
    "residual",
    "mlp stream",
    "mlp stream or input",
    "residual after",
    "attention input",
    "attention norm",
    "heads",
    "attention written",
    "attention added",
    "mlp input",
    "mlp norm",
    "mlp written",
    "mlp added",
]
POINTS: dict[Point, str] = {
    "residual": "the residual stream entering the layer",
    "mlp stream": "the residual stream between attention and MLP",
    "mlp stream or input": "the MLP's input, before its norm or after it",
    "residual after": "the residual stream leaving the layer",
    "attention input": "attention's normed input, gain and bias included",
    "attention norm": "TransformerLens' normalized input of attention",
    "heads": "what the heads mix, before W_O",
    "attention written": "attention's output, before any norm after it",
    "attention added": "what attention adds to the residual stream",
    "mlp input": "the MLP's normed input, gain and bias included",
    "mlp norm": "TransformerLens' normalized input of the MLP",
    "mlp written": "the MLP's output, before any norm after it",
    "mlp added": "what the MLP adds to the residual stream",
}
TRANSFORMER_LENS: dict[str, Point] = {
    "hook_resid_pre": "residual",
    "hook_resid_mid": "mlp stream",
    "hook_resid_post": "residual after",
    "hook_attn_in": "residual",
    "hook_mlp_in": "mlp stream or input",
    "ln1.hook_normalized": "attention norm",
    "attn.hook_z": "heads",
    "hook_attn_out": "attention added",
    "ln2.hook_normalized": "mlp norm",
    "mlp.hook_in": "mlp input",
    "mlp.hook_out": "mlp written",
    "hook_mlp_out": "mlp added",
}
"""Names after `blocks.L.`; the two of `mlp` are circuit-tracer's, around the MLP itself.

`hook_attn_out` and `hook_mlp_out` come after a norm that follows the sublayer (Gemma-2, Gemma-3).
"""
HUGGING_FACE: dict[str, Point] = {
    "output": "residual after",
    "self_attn.o_proj.input": "heads",
    "self_attn.o_proj.output": "attention written",
    "self_attn.output": "attention written",
    "pre_feedforward_layernorm.output": "mlp input",
    "mlp.input": "mlp input",
    "mlp.output": "mlp written",
    "post_feedforward_layernorm.output": "mlp added",
}
"""Names after `model.layers.L.`, as Gemma Scope 2 gives them."""
STREAM: dict[Point, int] = {"residual": 0, "mlp stream": 1, "residual after": 2}
"""And which stage each is, counted from the first of its layer."""
MLP_INPUTS = ("mlp input", "mlp norm", "mlp stream")
FORMS = (
    (re.compile(r"blocks\.(\d+)\.(.+)"), TRANSFORMER_LENS),
    (re.compile(r"(?:\w+\.)*layers\.(\d+)\.(.+)"), HUGGING_FACE),
)


@dataclass(frozen=True)
class Place:
    """One point of one layer of a model."""

    layer: int
    point: Point
    hook: str
    """The string it was parsed from."""


def place(where: object, setting: str, hook: object) -> Place:
    """Return the place that a hook string names; raises ValueError for one that is not known.

    >>> place("config.json", "hook_name", "blocks.3.hook_attn_out").point
    'attention added'
    """
    for form, names in FORMS:
        found = form.fullmatch(hook) if isinstance(hook, str) else None
        if found is not None and found[2] in names:
            return Place(int(found[1]), names[found[2]], str(hook))
    known = [f"blocks.L.{name}" for name in TRANSFORMER_LENS]
    known += [f"model.layers.L.{name}" for name in HUGGING_FACE]
    raise ValueError(
        f"{where}: {setting} is {hook!r}, which is no hook point that is known here. Known: "
        f"{', '.join(known)}. Correct it if it is misspelt."
    )


def sublayer_of(
    where: object, reads: Place, writes: Place
) -> Literal["mlp", "attention", "stream"]:
    """Return which sublayer a dictionary between two places can stand in for.

    "mlp" for a transcoder, "attention" for an SAE of attention's output, "stream" for one of the
    residual stream; raises ValueError for any other two places, and says why.
    """
    given = (
        f"{where}: reads {reads.hook} ({POINTS[reads.point]}), reproduces {writes.hook} "
        f"({POINTS[writes.point]})"
    )
    if reads.layer != writes.layer:
        raise ValueError(
            f"{given}: two layers. A dictionary stands in for one sublayer; correct the hooks."
        )
    if writes.point in ("mlp written", "mlp added") and reads.point in MLP_INPUTS:
        return "mlp"
    if reads.point == writes.point and reads.point in ("attention written", "attention added"):
        return "attention"
    if reads.point == writes.point and reads.point in STREAM:
        return "stream"
    raise ValueError(
        f"{given}. {_reason(reads)} What can be read: transcoders from an MLP's input "
        "(normed, or the stream before its norm) to its output, SAEs of attention's output, and "
        "SAEs of the residual stream."
    )


def number_of(places: tuple[Place, Place]) -> int:
    """Return which of the model's layers a dictionary is for; of the stream, which stage.

    >>> number_of((place("", "", "blocks.3.hook_resid_post"),) * 2)
    8
    """
    reads, writes = places
    if reads == writes and reads.point in STREAM:
        return 2 * reads.layer + STREAM[reads.point]
    return reads.layer


def _reason(reads: Place) -> str:
    if reads.point == "heads":
        return (
            "An SAE of the heads' outputs before W_O has no layer here: its features are not "
            "functions of what attention writes."
        )
    if reads.point == "mlp stream or input":
        return (
            "TransformerLens means the stream before the norm by it, tables of SAELens the normed "
            "input: hook_resid_mid is the one, mlp.hook_in the other."
        )
    if reads.point in ("mlp written", "mlp added"):
        return "An SAE of an MLP's output reads what the MLP wrote, not what it reads."
    return "No layer here reads the one and writes the other."
