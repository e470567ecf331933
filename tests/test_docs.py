"""What the documents show is what comes out: their Python runs and prints their text blocks."""

import contextlib
import importlib
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import circuits

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-\d+)?")
NOT_RUN = ("design.md", "index.md")
"""A sketch of interfaces, its one block of Python no example; the tutorial, run by test_readme."""
PAGES = sorted((ROOT / "docs").glob("*.md"))
SHOWN = [
    path
    for path in PAGES
    if path.name not in NOT_RUN and "```python\n" in path.read_text(encoding="utf-8")
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
OBJECT = re.compile(r"^::: (\S+)$", re.MULTILINE)


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


@pytest.mark.parametrize("document", SHOWN, ids=lambda path: path.stem)
def test_shown_output_is_real(document: Path) -> None:
    names: dict[str, object] = {}
    for code, shown in pairs(document):
        assert_same(printed(code, names), shown)


def test_another_output_would_be_noticed() -> None:
    assert_same("a 1.0004 b", "a 1.0000  b")
    assert_same("off by 1.6e-07", "off by 2.1e-08")
    for other in ("a 1.2 b", "a 1.0 c", "a 1.0"):
        with pytest.raises(AssertionError):
            assert_same("a 1.0 b", other)


def broken_links(text: str, folder: Path) -> list[str]:
    """Return the links of a page that lead to no file, or to no heading of another page."""
    broken = []
    for link in LINK.findall(CODE.sub("", text)):
        if ":" in link:
            continue
        name, _, anchor = link.partition("#")
        target = folder / name
        if not target.is_file() or (anchor and anchor not in headings(target)):
            broken.append(link)
    return broken


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as the site and GitHub make them."""
    found = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in found}


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(document: Path) -> None:
    """Within docs/ alone: that is what the site holds."""
    text = document.read_text(encoding="utf-8")
    assert broken_links(text, document.parent) == []
    assert "](../" not in CODE.sub("", text)


def test_a_broken_link_would_be_noticed() -> None:
    text = (
        "[a](none.md) [b](page.md) [c](many_circuits.md#feature-cards) [d](page.md#none) `[x](y)`"
    )
    assert broken_links(text, ROOT / "docs") == ["none.md", "page.md#none"]


def listed(entries: Any) -> list[str]:
    """Return the pages of a navigation."""
    if isinstance(entries, str):
        return [entries]
    inner = entries.values() if isinstance(entries, dict) else entries
    return [page for entry in inner for page in listed(entry)]


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    notebooks = [f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(listed(settings["nav"])) == sorted([*(path.name for path in PAGES), *notebooks])
    assert (ROOT / "docs" / "notebooks").resolve() == (ROOT / "notebooks").resolve()
    assert settings["theme"]["font"] is False, "fonts would be fetched from elsewhere"


def test_the_api_page_holds_every_public_name() -> None:
    found = OBJECT.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    objects = []
    for path in found:
        module, _, name = path.rpartition(".")
        objects.append(getattr(importlib.import_module(module), name))
        assert objects[-1].__module__ == module, f"{path} is only imported there"
        assert objects[-1].__doc__
    missing = [name for name in circuits.__all__ if getattr(circuits, name) not in objects]
    assert missing == []


DOCSTRING = """What it returns.

>>> one = [
...     1]
>>> one
[1]

And more.
"""


def test_examples_of_docstrings_are_fenced() -> None:
    """On the site `>>>` would be a quotation in a quotation in a quotation."""
    source = (ROOT / "docs" / "doctests.py").read_text(encoding="utf-8")
    names: dict[str, Any] = {"Extension": object, "Object": object}
    exec(source.replace("from griffe import Extension, Object\n", ""), names)
    thing = SimpleNamespace(docstring=SimpleNamespace(value=DOCSTRING))
    names["Doctests"]().on_instance(obj=thing)
    expected = DOCSTRING.replace(">>> one = [", "```pycon\n>>> one = [").replace(
        "[1]\n", "[1]\n```\n"
    )
    assert thing.docstring.value.split() == expected.split()
    assert thing.docstring.value.count("```") == 2
