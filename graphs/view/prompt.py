"""The prompt as people read it, and where in it the explained token is."""

from graphs.graph import Graph
from graphs.names import clip, clip_start, columns, readable


def explained_position(graph: Graph) -> int:
    """The token position the target belongs to, counted from 0; -1 where it has none."""
    tokens, pos = graph.meta["tokens"], graph.meta["target"].get("pos")
    if type(pos) is not int:
        pos = int(graph.nodes.loc[graph.target, "pos"])
    pos = pos + len(tokens) if pos < 0 and graph.meta["target"].get("pos") is not None else pos
    return pos if 0 <= pos < len(tokens) else -1


def marked_prompt(graph: Graph, room: int) -> str:
    """The prompt in at most ``room`` columns, [brackets] around the explained token.

    >>> from graphs.example import worked_example
    >>> marked_prompt(worked_example(), 40)
    '[x]'
    """
    before, marked, after = prompt_parts(graph)
    if not marked:
        return clip_start(before, room)
    middle = f"[{marked}]"
    lead = before[len(before.rstrip()) :] if before else ""
    text = f"{before.rstrip()}{lead}{middle}"
    tail = clip_end(after, max(room - columns(text), min(12, columns(after)) if after else 0))
    return clip_start(text, room - columns(tail)) + tail


def against_prompt(graph: Graph, room: int) -> str:
    """The prompt a contrast compares with, [brackets] around what differs; "" of one run.

    In at most ``room`` columns, cut so that the first difference is seen.
    """
    against = graph.meta.get("against")
    if against is None:
        return ""
    pieces: list[str] = []
    first, before = -1, False
    for token, own in zip(against["tokens"], graph.meta["tokens"], strict=True):
        text, differs = readable(token), token != own
        if differs and not before:
            stripped = text.lstrip()
            pieces.append(text[: len(text) - len(stripped)])
            first = len("".join(pieces)) if first < 0 else first
            pieces.append("[" + stripped)
        else:
            pieces.append(("]" if before and not differs else "") + text)
        before = differs
    whole = "".join(pieces) + ("]" if before else "")
    start, rest = whole[: max(first, 0)], whole[max(first, 0) :]
    start = clip_start(start, max(room - columns(rest), min(columns(start), room // 2)))
    return clip(start + rest, room)


def prompt_parts(graph: Graph) -> tuple[str, str, str]:
    """The prompt before the explained token, that token without its spaces, and the rest."""
    tokens, at = [readable(token) for token in graph.meta["tokens"]], explained_position(graph)
    if at < 0:
        return "".join(tokens), "", ""
    token = tokens[at]
    marked = token.strip()
    if not marked:
        return "".join(tokens[:at]), token.replace(" ", "␣") or "∅", "".join(tokens[at + 1 :])
    before = "".join(tokens[:at]) + token[: len(token) - len(token.lstrip())]
    return before, marked, token[len(token.rstrip()) :] + "".join(tokens[at + 1 :])


def clip_end(text: str, room: int) -> str:
    """The beginning of the text in at most ``room`` columns; nothing where not even … fits."""
    return clip(text, room) if room > 0 else ""
