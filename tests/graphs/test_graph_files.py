"""Our file: what goes in comes out bit for bit, and nothing else is let in."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies

import graphs
from graphs.example import worked_example
from graphs.files import native
from graphs.files.archive import array_bytes
from graphs.files.atomic import write_whole
from graphs.graph import Graph
from tests.graphs import samples

HOSTILE = "</script>\x00\u202e日本 👩‍👧 \ufffe\n"


def assert_same(a: Graph, b: Graph) -> None:
    for one, other in ((a.nodes, b.nodes), (a.edges, b.edges)):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
        for column in one.columns:
            if one[column].dtype.kind == "f":
                assert one[column].to_numpy().tobytes() == other[column].to_numpy().tobytes()
    assert a.meta == b.meta


@settings(deadline=None)
@given(samples.recipes(), strategies.text(max_size=8), strategies.floats(allow_infinity=False))
def test_what_is_written_is_read(recipe: samples.Recipe, text: str, effect: float) -> None:
    graph = recipe.graph()
    nodes, edges, meta = graph.nodes, graph.edges, graph.meta
    nodes["label"] = text.encode("utf-8", "ignore").decode()
    edges["effect"] = effect
    graph = Graph(nodes, edges, {**meta, "prompt": text})
    data = native.to_bytes(graph)
    folder = Path(os.environ["PYTEST_CURRENT_FOLDER"])
    (folder / "a.circuit").write_bytes(data)
    back = graphs.read_graph(folder / "a.circuit")
    assert_same(graph, back)
    assert native.to_bytes(back) == data


@pytest.fixture(autouse=True)
def current_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_CURRENT_FOLDER", str(tmp_path_factory.mktemp("circuits")))


def test_two_writes_are_equal(tmp_path: Path) -> None:
    graph = samples.circuit_like(rename=lambda text: text + HOSTILE)
    a, b = graphs.save(graph, tmp_path / "a.circuit"), graphs.save(graph, tmp_path / "b.CIRCUIT")
    assert a.read_bytes() == b.read_bytes()
    assert_same(graphs.read_graph(a), graph)
    assert_same(graphs.read_graph(str(b)), graph)


def members(graph: Graph) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(native.to_bytes(graph))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def with_head(change: Callable[[dict], object]) -> bytes:
    content = members(worked_example())
    head = json.loads(content["head.json"])
    change(head)
    return packed({**content, "head.json": json.dumps(head).encode()})


def with_member(name: str, data: bytes | np.ndarray) -> bytes:
    data = array_bytes(data) if isinstance(data, np.ndarray) else data
    return packed({**members(worked_example()), name: data})


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("/tmp/linear-circuits-was-executed"),)


def oversized() -> bytes:
    """A zip whose directory claims that one member unpacks to 3 GB."""
    content = bytearray(packed(members(worked_example())))
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = (3 << 30).to_bytes(4, "little")
    return bytes(content)


def claimed_shape() -> bytes:
    """An array whose header claims more rows than there are bytes."""
    header = array_bytes(np.zeros(6)).replace(b"(6,)", b"(9,)")
    return packed({**members(worked_example()), "nodes.activation.npy": header})


def doubled() -> bytes:
    buffer = io.BytesIO(packed(members(worked_example())))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("head.json", b"{}")
    return buffer.getvalue()


def without(name: str) -> bytes:
    content = members(worked_example())
    del content[name]
    return packed(content)


GOOD = native.to_bytes(worked_example())
CORRUPTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a zip"),
    "text": (lambda: b"hello", "not a zip"),
    "pickle": (lambda: pickle.dumps(Bomb()), "not a zip"),
    "cut short": (lambda: GOOD[: len(GOOD) // 2], "not a zip"),
    "one byte lost": (lambda: GOOD[:700] + GOOD[701:], "damaged"),
    "one bit flipped": (lambda: GOOD[:900] + bytes([GOOD[900] ^ 4]) + GOOD[901:], "damaged"),
    "no head": (lambda: without("head.json"), "lacks head.json"),
    "two heads": (doubled, "doubles"),
    "column missing": (lambda: without("edges.flow.npy"), "edges.flow is missing"),
    "stranger": (lambda: with_member("../../evil.py", b"1"), "members no circuit has"),
    "strange column": (lambda: with_member("nodes.x.npy", np.zeros(6)), "nodes.x"),
    "strange table": (lambda: with_member("paths.x.npy", np.zeros(0)), "paths.x"),
    "too long": (lambda: with_member("nodes.layer.npy", np.zeros(7, int)), "not .6,. of"),
    "too short": (lambda: with_member("nodes.layer.npy", np.zeros(5, int)), "not .6,. of"),
    "square": (lambda: with_member("nodes.layer.npy", np.zeros((6, 1), int)), "not .6,. of"),
    "other type": (lambda: with_member("nodes.layer.npy", np.zeros(6)), "of type float64"),
    "big-endian": (lambda: with_member("nodes.layer.npy", np.zeros(6, ">i8")), "type >i8"),
    "objects": (
        lambda: with_member("nodes.label.npy", saved(np.array([Bomb()] * 6, dtype=object))),
        "damaged or not a circuit",
    ),
    "no array": (lambda: with_member("nodes.layer.npy", b"x" * 100), "not an array"),
    "claimed shape": (claimed_shape, "shape .9,."),
    "claims 3 GB": (oversized, "would unpack to 3"),
    "absurd counts": (lambda: with_head(lambda h: h["counts"].update(nodes=10**15)), "rows do not"),
    "negative count": (lambda: with_head(lambda h: h["counts"].update(nodes=-1)), "counts"),
    "counts of text": (lambda: with_head(lambda h: h.update(counts="6")), "counts"),
    "against a number": (lambda: with_head(lambda h: h["meta"].update(against=3)), '"against"'),
    "against other tokens": (
        lambda: with_head(lambda h: h["meta"].update(against={"tokens": ["a"] * 9})),
        '"against": {"tokens": 1 of them}',
    ),
    "condition of text": (
        lambda: with_head(lambda h: h["meta"].update(condition={"leaves": "a", "slope": 1})),
        '"condition"',
    ),
    "head a list": (lambda: with_member("head.json", b"[]"), "not an object"),
    "head no JSON": (lambda: with_member("head.json", b"{"), "not JSON"),
    "head deep": (lambda: with_member("head.json", b"[" * 100_000), "not JSON"),
    "head with NaN": (lambda: with_member("head.json", b'{"meta": NaN}'), "holds NaN"),
    "other format": (lambda: with_head(lambda h: h.update(format="zip")), "format 'zip'"),
    "version text": (lambda: with_head(lambda h: h.update(version="1")), "version '1'"),
    "version true": (lambda: with_head(lambda h: h.update(version=True)), "version True"),
    "newer": (lambda: with_head(lambda h: h.update(version=3)), "Upgrade: pip install"),
    "no meta": (lambda: with_head(lambda h: h.pop("meta")), '"meta"'),
    "meta without tokens": (lambda: with_head(lambda h: h["meta"].pop("tokens")), "tokens"),
    "words gone": (lambda: with_head(lambda h: h["words"].pop("nodes.kind")), "nodes.kind"),
    "words not text": (lambda: with_head(lambda h: h["words"].update({"nodes.kind": [1]})), "kind"),
    "too few words": (lambda: with_head(lambda h: h["words"]["nodes.kind"].pop()), "not there"),
    "unknown kind": (
        lambda: with_head(lambda h: h["words"].update({"nodes.kind": ["a", "b", "c"]})),
        "nodes.kind holds",
    ),
    "negative id": (lambda: with_member("nodes.node.npy", np.arange(-1, 5)), "0 or more"),
    "not finite": (lambda: with_member("nodes.attribution.npy", np.full(6, np.inf)), "finite"),
    "edge to nowhere": (lambda: with_member("edges.source.npy", np.full(13, 9)), "name nodes .9."),
}


@pytest.mark.parametrize("case", CORRUPTED)
def test_broken_and_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    make, message = CORRUPTED[case]
    path = tmp_path / "mine.circuit"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as caught:
        graphs.read_graph(path)
    assert "mine.circuit" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/linear-circuits-was-executed").exists()


def test_the_good_file_is_read_also_when_zipped_again(tmp_path: Path) -> None:
    for name, compression in (("a", zipfile.ZIP_STORED), ("b", zipfile.ZIP_DEFLATED)):
        path = tmp_path / f"{name}.circuit"
        path.write_bytes(packed(members(worked_example()), compression))
        assert_same(graphs.read_graph(path), worked_example())


@settings(deadline=None, max_examples=200)
@given(
    strategies.lists(
        strategies.tuples(strategies.integers(0, len(GOOD) - 1), strategies.integers(0, 255)),
        min_size=1,
        max_size=6,
    )
)
def test_random_damage_gives_an_error_or_a_sound_graph(damage: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for place, value in damage:
        data[place] = value
    path = Path(os.environ["PYTEST_CURRENT_FOLDER"]) / "damaged.circuit"
    path.write_bytes(data)
    try:
        graph = graphs.read_graph(path)
    except ValueError:
        return
    assert_same(graph, worked_example())


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        graphs.read_graph(tmp_path / "none.circuit")
    with pytest.raises(ValueError, match="not a file"):
        graphs.read_graph(tmp_path)
    with pytest.raises(FileNotFoundError, match="mkdir"):
        graphs.save(worked_example(), tmp_path / "none" / "a.circuit")
    (tmp_path / "folder.circuit").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        graphs.save(worked_example(), tmp_path / "folder.circuit")


def test_an_older_file_is_carried_up_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graphs.save(worked_example(), tmp_path / "old.circuit")

    def renamed(content: dict) -> dict:
        content["head"]["meta"]["threshold"] = 0.5
        content["arrays"]["nodes.ungated"] = content["arrays"]["nodes.ungated"] * 2
        return content

    monkeypatch.setattr(native, "VERSION", 4)
    monkeypatch.setitem(native.MIGRATIONS, 2, renamed)
    with pytest.raises(ValueError, match="cannot step from 3 to 4"):
        graphs.read_graph(path)
    monkeypatch.setitem(native.MIGRATIONS, 3, lambda content: content)
    graph = graphs.read_graph(path)
    assert graph.meta["threshold"] == 0.5
    assert graph.nodes["ungated"].tolist() == [32.0, 8.0, 16.0, 16.0, 8.0, 32.0]


def test_a_file_of_version_1_opens(tmp_path: Path) -> None:
    """It has no column `in_switch`: nothing switched."""
    path = graphs.save(worked_example(), tmp_path / "old.circuit")
    members = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            members[name] = archive.read(name)
    del members["nodes.in_switch.npy"]
    members["head.json"] = members["head.json"].replace(b'"version": 2', b'"version": 1')
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert graphs.read_graph(path).nodes.equals(worked_example().nodes)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.circuit"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        graphs.save(worked_example(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.circuit"]
    assert path.read_bytes() == b"before"


def test_writing_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real.bin")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"new"


def test_unknown_endings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'.docx'. Endings known: .circuit, .html"):
        graphs.save(worked_example(), tmp_path / "a.docx")
    assert graphs.save(worked_example(), tmp_path / "a.svg").read_text().startswith("<svg")
