"""Options that several commands have: one spelling, one help text."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="four-tasks, a folder, or a Hugging Face hub name.")]
Prompt = Annotated[str, typer.Argument(help="The text whose next token is explained.")]
Explain = Annotated[str, typer.Option(help='The token explained, for instance " Mary".')]
Minus = Annotated[
    str | None,
    typer.Option(help="Explain the difference to this token's logit; else to the mean logit."),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="Compare with this prompt of as many tokens: explain by how much the target exceeds "
        "what it is there."
    ),
]
Mlp = Annotated[
    str | None,
    typer.Option(
        help='What MLPs are read as: "neurons", "transcoders", a folder of them, or a published '
        "set (circuits list)."
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help='What attention is read as: "heads", "lorsa", "attention-saes", a folder of either, '
        "or a published set (circuits list)."
    ),
]
Residual = Annotated[
    str | None,
    typer.Option(
        help='What the residual stream is read as: "stream" (itself), "residual-saes", a folder of '
        "SAEs, or a published set (circuits list)."
    ),
]
Split = Annotated[
    str | None,
    typer.Option(help='"half": gated neurons are read half through each of their branches.'),
]
Edges = Annotated[
    str,
    typer.Option(
        help='"flow": what moved along the stream; "direct": effects through heads; or "both".'
    ),
]
Threshold = Annotated[float, typer.Option(help="Share of the target a node must contribute.")]
MaxNodes = Annotated[int | None, typer.Option(help="Keep at most so many nodes.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …; default: cuda where there is one.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32 (default), float64, or bfloat16 (weights kept so, computed in float32)."
    ),
]
Output = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        "-o",
        help="Write here; the ending decides: .circuit, .html, .json, .svg, .png, .graphml, .csv "
        "or .parquet.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]
CircuitFile = Annotated[
    Path, typer.Argument(help="A .circuit or .json file, or a .pt of circuit-tracer.")
]
