"""`circuits show, convert, test, serve`: what they print and write, and that torch stays away."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from circuits import read
from circuits.server import server_of
from graphs.example import worked_example
from graphs.files import save
from tests.circuits.folders import PROMPT
from tests.circuits.shell import command, heavy_imports
from tests.errors.mistakes import Mistake, assert_explained, each
from tests.graphs import samples

pytestmark = pytest.mark.usefixtures("at_the_shell")


@pytest.fixture
def saved(tmp_path: Path) -> str:
    return str(save(samples.circuit_like(), tmp_path / "a.circuit"))


# ---------------------------------------------------------------- show and convert


def test_show_as_json(saved: str) -> None:
    result = command("show", saved, "--json", "--paths", "3", "-o", "a.svg")
    told, circuit = json.loads(result.stdout), read(saved)
    assert told["value"] == circuit.value and len(told["paths"]) == 3
    assert told["paths"][0]["path"] == circuit.paths(1)["path"].iloc[0]
    assert told["explained"] == circuit.explained.to_dict()
    assert sum(told["explained"].values()) == pytest.approx(told["value"], abs=1e-4)
    assert result.stderr == "wrote a.svg\n" and Path("a.svg").is_file()


def test_show_two_in_one_page(saved: str, tmp_path: Path) -> None:
    other = str(save(samples.circuit_like(1), tmp_path / "b.circuit"))
    assert command("show", saved, "--with", other, "-o", "both.html").exit_code == 0
    assert Path("both.html").read_text() == read(saved).page(read(other))
    refused = command("show", saved, "--with", other, "-o", "both.svg")
    assert refused.exit_code == 2 and "two circuits fit into a page" in refused.stderr


def test_convert_there_and_back(saved: str) -> None:
    result = command("convert", saved, "b.json", "b.graphml", "b.csv", "b.svg", "b.html")
    assert result.exit_code == 0
    assert result.stdout.split("\n")[:2] == ["wrote b.json", "wrote b.graphml"]
    assert command("convert", "b.json", "c.circuit").exit_code == 0
    assert Path("c.circuit").read_bytes() == Path(saved).read_bytes()
    command("convert", saved, "small.circuit", "--prune", "0.5")
    assert len(read("small.circuit").nodes) < len(read(saved).nodes)


@pytest.mark.parametrize(
    "words",
    [("show", "a.circuit", "-o", "a.html"), ("convert", "a.circuit", "b.json"), ("list",)],
    ids=lambda words: words[0],
)
@pytest.mark.usefixtures("saved")
def test_without_torch(words: tuple[str, ...]) -> None:
    """In a process of its own: neither torch nor transformers is imported."""
    assert heavy_imports(*words) == []


def test_an_import_of_torch_would_be_noticed() -> None:
    words = ("plan", "four-tasks", PROMPT, "--explain", " Mary", "--dry")
    assert "torch" in heavy_imports(*words)


def test_lines_fit_80_columns(saved: str) -> None:
    for words in (("show", saved, "--paths", "2"), ("list",), ("--help",), ("show", "--help")):
        lines = command(*words).stdout.splitlines()
        assert lines and max(map(len, lines)) <= 80


# ---------------------------------------------------------------- test


def test_a_saved_circuit_is_tested() -> None:
    words = ("--explain", " Mary", "--minus", " John", "--max-nodes", "12")
    traced = command("trace", "four-tasks", PROMPT, *words, "-o", "a.circuit", "--json")
    assert traced.exit_code == 0
    value = json.loads(traced.stdout)["value"]
    result = command("test", "a.circuit", "--json", "-o", "b.circuit", "-o", "b.html")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["deviation"] < 1e-4
    tokens = [row for row in told["tested"] if row["name"] == '" Mary"@2']
    assert len(tokens) == 1 and tokens[0]["predicted"] == pytest.approx(tokens[0]["held"], abs=1e-4)
    circuit = read("b.circuit")
    assert circuit.value == pytest.approx(value)
    measured = circuit.meta["details"]["measured"]
    assert measured[str(tokens[0]["node"])]["free"] == tokens[0]["free"]
    text = command("test", "a.circuit").stdout
    assert "knocked out one at a time" in text and max(map(len, text.splitlines())) <= 80


# ---------------------------------------------------------------- serve

Get = Callable[..., tuple[int, str]]


@pytest.fixture
def get(tmp_path: Path) -> Iterator[Get]:
    """A folder with circuits, one outside it, and a way to ask for paths exactly as written."""
    folder = tmp_path / "inside"
    (folder / "sub").mkdir(parents=True)
    save(worked_example(), folder / "a.circuit")
    save(worked_example(), folder / "sub" / "b <script>.json")
    save(worked_example(), tmp_path / "secret.circuit")
    (folder / "notes.txt").write_text("mine")
    (folder / "broken.circuit").write_text("no zip")
    (folder / "link.circuit").symlink_to(tmp_path / "secret.circuit")
    server = server_of(folder, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
        connection.endheaders()
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    yield ask
    server.shutdown()
    thread.join()
    server.server_close()


def test_serve_lists_and_draws(get: Get) -> None:
    code, text = get("/")
    assert code == 200 and 'href="/a.circuit"' in text and "secret" not in text
    assert "<script>.json" not in text and "notes.txt" not in text and "link" not in text
    code, text = get("/a.circuit")
    assert code == 200 and text.startswith("<!doctype html>") and "y = 16" in text
    code, text = get("/sub/b%20%3Cscript%3E.json")
    assert code == 200 and "y = 16" in text
    code, text = get("/broken.circuit")
    assert code == 500 and "cannot be opened as a circuit" in text


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.circuit",
        "/%2e%2e/secret.circuit",
        "/sub/../../secret.circuit",
        "/..%2fsecret.circuit",
        "//../secret.circuit",
        "/link.circuit",
        "/notes.txt",
        "/sub",
        "/%00.circuit",
        "/" + "a" * 5000 + ".circuit",
        "/nothing.circuit",
    ],
)
def test_nothing_outside_the_folder_is_served(get: Get, path: str, tmp_path: Path) -> None:
    assert get(path)[0] == 404
    assert get("/" + str(tmp_path / "secret.circuit"))[0] == 404
    assert get("/a.circuit")[0] == 200, "control: what is inside is served"


def test_only_this_machine_is_answered(get: Get) -> None:
    assert get("/", host="example.org")[0] == 403
    assert get("/", host="localhost:1")[0] == 200
    assert get("/", method="POST")[0] == 501
    server = server_of(Path(), 0)
    try:
        assert server.server_address[0] == "127.0.0.1"
    finally:
        server.server_close()


def taken(folder: Path) -> object:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        return server_of(folder, other.getsockname()[1])


SERVING = [
    Mistake(
        "a folder that is none",
        lambda folder: server_of(folder / "none", 0),
        ValueError,
        ("serve:", "is no folder", "holds circuits"),
    ),
    Mistake("a port that is taken", taken, ValueError, ("cannot be had", "--port 0")),
    Mistake(
        "no port at all",
        lambda folder: server_of(folder, 99_999),
        ValueError,
        ("port 99999 cannot be had", "--port 0"),
    ),
]


@each(SERVING)
def test_serving(mistake: Mistake, tmp_path: Path) -> None:
    assert_explained(mistake, tmp_path)


def test_numbers_of_json_are_plain(saved: str) -> None:
    """A script reads them: no numpy types, no NaN."""
    text = command("show", saved, "--json").stdout
    assert "NaN" not in text and isinstance(json.loads(text)["nodes"], int)
    assert np.isfinite(json.loads(text)["conservation"])
