"""For the site: examples in docstrings, `>>>` lines and their output, as blocks of code."""

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"(?:^[ \t]*>>> .*\n?(?:^(?!\s*>>> )[ \t]*\S.*\n?)*)+", re.MULTILINE)


class Doctests(Extension):
    """Fences the examples of every docstring."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Called for every module, class, function and attribute that was read."""
        if obj.docstring is not None and "Examples\n----" not in obj.docstring.value:
            text = EXAMPLE.sub(_fenced, obj.docstring.value + "\n")
            obj.docstring.value = text.rstrip("\n")


def _fenced(found: re.Match[str]) -> str:
    return f"```pycon\n{found[0].rstrip()}\n```\n"
