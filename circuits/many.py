"""Many prompts: one circuit a line of a file and one table of all, by one process or by many.

Lines are split over the ranks of `torchrun` by their number alone; every rank writes the files of
its own lines, each whole or not at all, and rank 0 the table once all are there. What was finished
before a run was killed is found by what is in the files, and kept.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from attribution.direct_edges import EdgeKind
from attribution.plan import check_bound, node_limit
from circuits.circuit import Circuit, read
from circuits.loading import load
from circuits.ranks import Ranks, joined
from circuits.tracer import check_rule, trace
from graphs.files.atomic import write_whole
from graphs.graph import TOLERANCE
from replacement.model import ReplacementModel
from replacement.prompts import single_token, token_ids_of
from replacement.run import Run
from replacement.target import Target

INDEX = "index.jsonl"
KNOWN = ("prompt", "explain", "minus", "against")
_OF_ONE_LINE = (ValueError, TypeError, IndexError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Line:
    """One line of a file of prompts."""

    number: int
    """From 1, empty lines counted."""
    text: str

    @property
    def file(self) -> str:
        return f"line-{self.number:06}.circuit"

    def asked(self) -> dict[str, Any]:
        """Return prompt, explain, minus and against (None if not there).

        Raises ValueError or TypeError for what is no such object.
        """
        try:
            found = json.loads(self.text)
        except (json.JSONDecodeError, RecursionError) as problem:
            raise ValueError(f"not JSON ({problem}). {_FITS}") from None
        if not isinstance(found, dict):
            raise TypeError(f"{type(found).__name__}: {found!r:.60}. {_FITS}")
        missing = [name for name in KNOWN[:2] if found.get(name) is None]
        unknown = [name for name in found if name not in KNOWN]
        if missing or unknown:
            what = f"no {missing[0]!r}" if missing else f"an unknown {unknown[0]!r}"
            raise ValueError(f"{what} in it (it has: {', '.join(found) or 'nothing'}). {_FITS}")
        return {"minus": None, "against": None, **found}


Row = tuple[dict[str, Any], bool]
"""A line's row of the table, and whether its circuit was there already."""
_RUN = ("prompt", "against")
"""What of a line is run."""
_FITS = 'A line is for instance {"prompt": "Mary and John went", "explain": " to", "minus": " in"}.'


@dataclass(frozen=True)
class Traced:
    """What came of a file of prompts."""

    folder: Path
    rows: list[dict[str, Any]]
    """One a line, as in the index."""
    kept: int
    """How many circuits were there already."""
    problems: list[str]
    """Lines that could not be traced, and circuits whose sums do not close."""
    rank: int

    def __str__(self) -> str:
        there = f" ({self.kept} of them were there already)" if self.kept else ""
        made = sum(row["problem"] is None for row in self.rows)
        return f"wrote {made} circuit{'' if made == 1 else 's'}{there} and {INDEX} to {self.folder}"


def trace_file(
    model: str,
    file: Path,
    output: Sequence[Path] | None,
    given: dict[str, Any],
    device: str | None,
    layers: dict[str, Any],
    options: dict[str, Any],
) -> Traced:
    """Load a model, trace a file of prompts, and return what came of it: the command line's words.

    `given`: options that are for one prompt. Raises ValueError for one of these, or unless one
    folder is to be written to; else as `lines_of`, `load` and `trace_lines`.
    """
    lines = lines_of(file)
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ValueError(f"{wrong[0]}: is for one prompt; {file} says for every line what. {_FITS}")
    if output is None or len(output) != 1:
        raise ValueError(f"{file}: many circuits are written. Give one folder for them: -o FOLDER.")
    loaded = load(model, device=Ranks.of_environment().device(device), **layers)
    return trace_lines(loaded, lines, output[0], **options)


def lines_of(file: Path) -> list[Line]:
    """Return the lines of a file of prompts that are not empty.

    Raises FileNotFoundError or ValueError for a file that is missing, no text, or empty.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file. {_FITS}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{file}: not UTF-8 text ({problem}). {_FITS}") from None
    found = [Line(number, one) for number, one in enumerate(text.split("\n"), 1) if one.strip()]
    if not found:
        raise ValueError(f"{file}: holds no prompts. {_FITS}")
    return found


def trace_lines(
    model: ReplacementModel,
    lines: list[Line],
    folder: Path,
    threshold: int | float = 0.005,
    *,
    max_nodes: int | None = None,
    edges: EdgeKind = "flow",
    together: int = 1,
    progress: bool = True,
) -> Traced:
    """Return the table of all lines, once the circuit of each is in `folder`.

    `folder` (made if needed) gets `line-000001.circuit`, … and `index.jsonl`, one object a line.
    A circuit that is there already is kept if `model` still gives what is in one of them, and if
    model, layers, prompt, target, threshold and the other options in it are those asked for; else
    it is made anew. A line that cannot be traced has its reason in the table, and does not stop
    the others. Under torchrun every process traces its share; the table is that of all, in all.

    `together`: so many lines are taken at once, and those of one length among them run in one
    forward pass (`model.runs`), which is faster for short prompts; circuits are those of single
    lines up to rounding, and the same bits again for the same file and number.

    Raises ValueError for a folder that is a file, or a threshold, bound, number or kind of edges
    that makes no sense; OSError if nothing can be written.
    """
    if not isinstance(together, int) or together < 1:
        raise ValueError(f"together={together!r}: how many lines at once, 1 or more.")
    check_bound(max_nodes)
    check_rule(threshold, "absolute", edges)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"-o {folder}: is a file; give a folder, which is made if needed.")
    job = _Job(model, folder, threshold, max_nodes, edges)
    with joined() as ranks:
        if ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            job.tidy(lines)
        ranks.wait()
        starts = range(0, len(lines), together)[ranks.rank :: ranks.count]
        bar = tqdm(total=len(lines), desc="prompts", disable=not progress or ranks.rank > 0)
        own = []
        for start in starts:
            own += job.rows_of(lines[start : start + together])
            bar.update(ranks.count * together)
        bar.close()
        found = ranks.all_of(own)
    found.sort(key=lambda made: made[0]["line"])
    rows = [row for row, _ in found]
    if ranks.rank == 0:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(folder / INDEX, text.encode())
    return Traced(folder, rows, sum(kept for _, kept in found), list(_problems(rows)), ranks.rank)


class _Job:
    """A model and what is asked of it for every line."""

    def __init__(
        self,
        model: ReplacementModel,
        folder: Path,
        threshold: int | float,
        max_nodes: int | None,
        edges: EdgeKind,
    ) -> None:
        self.model, self.folder = model, folder
        self.threshold, self.max_nodes = threshold, max_nodes
        self.edges: EdgeKind = edges
        self._limits: list[int | None] = []

    def tidy(self, lines: list[Line]) -> None:
        """Remove what killed runs left half written, and all circuits if they are another model's.

        Names do not tell: weights can be trained on. So one of the circuits is tried on the model.
        """
        for draft in self.folder.glob(".*.part"):
            draft.unlink(missing_ok=True)
        there = [self.folder / line.file for line in lines if (self.folder / line.file).exists()]
        for path in there:
            circuit = _readable(path)
            if circuit is not None:
                try:
                    circuit.attach(self.model)
                except ValueError:
                    break
                return
        for path in there:
            path.unlink()

    def rows_of(self, lines: Sequence[Line]) -> list[Row]:
        """Return the lines' rows of the table, circuits on disk; and which of these were there.

        If one is missing all are run, since what is run together decides the last digits.
        """
        rows: dict[int, Row] = {}
        asked: dict[int, dict[str, Any]] = {}
        for line in lines:
            try:
                asked[line.number] = self._asked(line)
                circuit = _readable(self.folder / line.file)
                if circuit is not None and self._fits(circuit, asked[line.number]):
                    rows[line.number] = _row(line, circuit), True
            except _OF_ONE_LINE as problem:
                asked.pop(line.number, None)
                rows[line.number] = self._failed(line, problem)
        by_number = {line.number: line for line in lines}
        if rows.keys() != by_number.keys():
            compared = {n: one["against"] for n, one in asked.items() if one["against"] is not None}
            try:
                runs = self.model.runs([one["prompt"] for one in asked.values()])
                others = dict(zip(compared, self.model.runs(list(compared.values())), strict=True))
            except _OF_ONE_LINE as problem:
                return [rows.get(line.number) or self._failed(line, problem) for line in lines]
            for (number, one), run in zip(asked.items(), runs, strict=True):
                if number not in rows:
                    line = by_number[number]
                    rows[number] = self._traced(line, one, run, others.get(number))
        return [rows[line.number] for line in lines]

    def _asked(self, line: Line) -> dict[str, Any]:
        """What a line asks for; ValueError or TypeError for prompts that cannot be run."""
        asked = line.asked()
        for name in _RUN:
            if asked[name] is not None:
                self._ids(asked[name])
        return asked

    def _traced(self, line: Line, asked: dict[str, Any], run: Run, against: Run | None) -> Row:
        path = self.folder / line.file
        path.unlink(missing_ok=True)
        try:
            circuit = trace(
                target_of(run, asked["explain"], asked["minus"]),
                self.threshold,
                max_nodes=self.max_nodes,
                against=against,
                edges=self.edges,
                progress=False,
            )
        except _OF_ONE_LINE as problem:
            return self._failed(line, problem)
        circuit.save(path)
        return _row(line, circuit), False

    def _failed(self, line: Line, problem: BaseException) -> Row:
        (self.folder / line.file).unlink(missing_ok=True)
        return {"line": line.number, "file": None, "problem": str(problem)}, False

    def _fits(self, circuit: Circuit, asked: dict[str, Any]) -> bool:
        """Whether a circuit is what tracing a line would give."""
        meta, model = circuit.meta, self.model
        ids = self._ids(asked["prompt"])
        other = None if asked["against"] is None else self._ids(asked["against"])
        tokens = [asked["explain"]] + ([] if asked["minus"] is None else [asked["minus"]])
        kind = "centered_logit" if asked["minus"] is None else "logit"
        wanted = {
            "model": model.name,
            "layers": model.read_as,
            "errors": True,
            "prompt": asked["prompt"] if isinstance(asked["prompt"], str) else None,
            "token_ids": ids,
            "threshold": self.threshold,
            "gate": "absolute",
            "max_nodes": self._limit(ids),
            "edges": self.edges,
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights": str(model.weights_dtype).removeprefix("torch."),
        }
        terms = [
            (
                kind,
                weight,
                len(ids) - 1,
                single_token(token, model.tokenizer, model.weights.d_vocab),
            )
            for weight, token in zip((1.0, -1.0), tokens, strict=False)
        ]
        names = ("kind", "weight", "pos", "index")
        found = [tuple(term.get(name) for name in names) for term in meta["target"]["terms"]]
        compared = meta.get("against", {"token_ids": None})["token_ids"]
        same = found == terms and compared == other
        return same and all(meta.get(name) == one for name, one in wanted.items())

    def _ids(self, prompt: Any) -> list[int]:
        model = self.model
        return token_ids_of(
            prompt, model.tokenizer, d_vocab=model.weights.d_vocab, n_context=model.n_context
        ).tolist()

    def _limit(self, ids: Sequence[int]) -> int | None:
        """The bound on nodes, which is the same for all prompts of a model."""
        if not self._limits:
            self._limits.append(node_limit(self.model.run(ids), self.max_nodes))
        return self._limits[0]


def target_of(run: Run, explain: Any, minus: Any = None) -> Target:
    """Return a token's logit less another's, or less the mean of all.

    Raises ValueError or TypeError for what is no token.
    """
    logit = run.logit(explain)
    return logit.centered() if minus is None else logit - run.logit(minus)


def _readable(path: Path) -> Circuit | None:
    try:
        return read(path)
    except (FileNotFoundError, ValueError):
        return None


def _row(line: Line, circuit: Circuit) -> dict[str, Any]:
    return {
        "line": line.number,
        "file": line.file,
        "problem": None,
        "tokens": len(circuit.meta["tokens"]),
        "target": circuit.meta["target"]["label"],
        "value": circuit.value,
        **circuit.explained.to_dict(),
        "nodes": len(circuit.nodes),
        "edges": len(circuit.edges),
        **circuit.meta["checks"],
    }


def _problems(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        problem = row["problem"]
        if problem is None:
            checks = {name: row[name] for name in ("closure", "conservation")}
            failed = [f"{name} {off:.1e}" for name, off in checks.items() if not off <= TOLERANCE]
            problem = f"failed checks (tolerance {TOLERANCE:g}): {', '.join(failed)}"
            if not failed:
                continue
        yield f"line {row['line']}: {problem}"
