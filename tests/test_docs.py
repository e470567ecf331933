"""What the documents show is what comes out: their Python runs and prints their text blocks."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-\d+)?")
SHOWN = (
    "docs/attention.md",
    "docs/contrast.md",
    "docs/edits.md",
    "docs/global_weights.md",
    "docs/many_circuits.md",
)


def pairs(path: Path) -> list[tuple[str, str]]:
    """Return the document's Python blocks, each with the text block that follows it."""
    blocks = FENCE.findall(path.read_text(encoding="utf-8"))
    kinds = [kind for kind, _ in blocks]
    assert kinds == ["python", "text"] * (len(kinds) // 2), "each code block shows its output"
    texts = [text for _, text in blocks]
    return list(zip(texts[::2], texts[1::2], strict=True))


def printed(code: str, names: dict[str, object]) -> str:
    """Return what code prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "document", "exec"), names)
    return out.getvalue()


def assert_same(found: str, shown: str) -> None:
    """Assert equal words and nearly equal numbers (other machines round otherwise)."""
    assert NUMBER.sub("#", found).split() == NUMBER.sub("#", shown).split()
    for one, other in zip(NUMBER.findall(found), NUMBER.findall(shown), strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.01, abs=0.001)


@pytest.mark.parametrize("document", SHOWN)
def test_shown_output_is_real(document: str) -> None:
    names: dict[str, object] = {}
    for code, shown in pairs(ROOT / document):
        assert_same(printed(code, names), shown)


def test_another_output_would_be_noticed() -> None:
    assert_same("a 1.0004 b", "a 1.0000  b")
    assert_same("off by 1.6e-07", "off by 2.1e-08")
    for other in ("a 1.2 b", "a 1.0 c", "a 1.0"):
        with pytest.raises(AssertionError):
            assert_same("a 1.0 b", other)
