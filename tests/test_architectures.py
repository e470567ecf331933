"""docs/architectures.md: its table is written from the rows of data.

`python -m tests.test_architectures` writes it anew.
"""

from pathlib import Path
from typing import Any

from replacement.families import FAMILIES, Family
from replacement.layers import GatedNeurons
from replacement.model import ReplacementModel
from tests.families import CONFIGS, tiny

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
START, END = "<!-- families -->\n", "<!-- /families -->"


def table() -> str:
    """Return the table of families as Markdown."""
    rows = ["| class | blocks | norm | positions | attention | MLP | tested as |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, family in FAMILIES.items():
        tested = [one for one in CONFIGS if type(tiny(one)).__name__ == name]
        models = [ReplacementModel(tiny(one)) for one in tested]
        rows.append(f"| `{name}` | {' | '.join(_cells(family, models))} | {'; '.join(tested)} |")
    return "\n".join(rows) + "\n"


def _cells(family: Family, models: list[ReplacementModel]) -> list[str]:
    layers: list[Any] = [layer for model in models for layer in model.weights.layers]
    looks = [layer.heads.query_key for layer in layers]
    parallel = {layer.parallel for layer in layers}
    after = ", norms after" if family.mlp_post_norm else ""
    turned = [one.rotary for one in looks if one.rotary is not None]
    positions = "learned" if family.position_embedding else "rotary"
    if any(one.width < look.query.shape[-1] for one, look in zip(turned, looks, strict=False)):
        positions += ", partial"
    traits = {
        "grouped keys": any(len(one.key) < one.n_heads for one in looks),
        "q/k norm": any(one.query_norm is not None for one in looks),
        "window": any(one.window is not None for one in looks),
        "soft-cap": any(one.soft_cap is not None for one in looks),
        "biases": any(one.query_bias is not None for one in looks),
    }
    return [
        " or ".join("parallel" if one else "sequential" for one in sorted(parallel)) + after,
        "LayerNorm" if family.norm_centred else "RMSNorm",
        positions,
        ", ".join(name for name, there in traits.items() if there) or "plain",
        "gated" if isinstance(layers[0].mlp, GatedNeurons) else "plain",
    ]


def test_the_table_is_that_of_the_rows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.split(START)[1].split(END)[0]
    assert shown == table(), "run python -m tests.test_architectures"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1], encoding="utf-8")
