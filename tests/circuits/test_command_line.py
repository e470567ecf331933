"""The `circuits` command: what goes to stdout and stderr, what is written, how it ends."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import Result

import attribution.sweep
import circuits
import circuits.testing
import circuits.tracer
from circuits import load, read
from graphs.names import clip
from tests.circuits.folders import PROMPT, save_text_model, tokenizer
from tests.circuits.shell import command

COMMANDS = ("demo", "trace", "plan", "list", "show", "test", "compare", "convert", "serve")
TASKS = ("ioi", "induction", "bracket", "greater_than")
EXPLAIN = ("--explain", " Mary", "--minus", " John")

pytestmark = pytest.mark.usefixtures("at_the_shell")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model, its tokenizer and transcoders."""
    return str(save_text_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def saved(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("circuits") / "saved.circuit"
    assert command("trace", model, PROMPT, *EXPLAIN, "-o", str(path)).exit_code == 0
    return str(path)


def assert_refused(result: Result, *says: str) -> None:
    """Exit code 2, nothing on stdout but what was printed before, one paragraph on stderr."""
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert not [words for words in says if words not in result.stderr], result.stderr


# ---------------------------------------------------------------- help


def test_help_names_every_command() -> None:
    result = command("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example(name: str) -> None:
    result = command(name, "--help")
    assert result.exit_code == 0
    assert f"Example: circuits {name}" in " ".join(result.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_spelt_in_one_way(name: str) -> None:
    """Kebab case, one spelling each."""
    options = set(re.findall(r"--[\w-]+", command(name, "--help").stdout))
    assert not [option for option in options if "_" in option or option != option.lower()]
    words = {"--max-nodes", "--threshold", "--minus", "--explain", "--mlp", "--attention"}
    assert name != "trace" or words <= options


def test_no_words_show_the_help() -> None:
    result = command()
    assert result.exit_code == 2 and "Usage" in result.output


# ---------------------------------------------------------------- trace, plan, show


def test_trace_prints_plan_and_circuit_and_writes_both_files(model: str) -> None:
    result = command("trace", model, PROMPT, *EXPLAIN, "-o", "a.circuit", "-o", "a.svg")
    assert result.exit_code == 0
    assert "Loading weights" not in result.stderr, "a bar that nobody can read in time"
    for words in ("model ", "target ", 'logit(" Mary") - logit(" John")', "nodes ", "memory "):
        assert words in result.stdout, words
    assert "they add up to the target" in result.stdout
    assert "wrote a.circuit" in result.stdout and "wrote a.svg" in result.stdout
    assert read("a.circuit").meta["prompt"] == PROMPT
    assert Path("a.svg").read_text().startswith("<svg")


def test_a_contrast_says_what_it_is_compared_with(model: str) -> None:
    other = PROMPT.replace("John gave", "Mary gave")
    asked = (model, PROMPT, *EXPLAIN, "--against", other)
    result = command("trace", *asked, "--test", "-o", "a.circuit", "-o", "a.svg")
    assert result.exit_code == 0, result.output
    for words in ("2 forward passes", "against: ", "[Mary] gave", "condition: ", "patched one"):
        assert words in result.stdout, words
    assert read("a.circuit").meta["against"]["prompt"] == other
    assert "against: " in command("show", "a.circuit", "--prune", "0.5").stdout
    planned = command("plan", *asked)
    assert planned.exit_code == 0 and "2 forward passes" in planned.stdout
    assert 'Δ(logit(" Mary") - logit(" John"))' in planned.stdout


def test_a_single_token_is_explained_against_the_mean(model: str) -> None:
    result = command("trace", model, PROMPT, "--explain", " Mary", "-o", "a.circuit")
    assert result.exit_code == 0
    assert 'centered_logit(" Mary")' in result.stdout
    assert [term["kind"] for term in read("a.circuit").meta["target"]["terms"]] == [
        "centered_logit"
    ]


@pytest.mark.parametrize(
    ("option", "fact", "expected"),
    [
        (("--threshold", "0.3"), "threshold", 0.3),
        (("--max-nodes", "5"), "max_nodes", 5),
        (("--mlp", "neurons"), "layers", {"mlp": "neurons", "attention": "heads"}),
        (("--mlp", "transcoders"), "layers", {"mlp": "transcoders", "attention": "heads"}),
        (("--attention", "heads"), "layers", {"mlp": "transcoders", "attention": "heads"}),
        (("--dtype", "float64"), "dtype", "float64"),
        (("--device", "cpu"), "dtype", "float32"),
        (("--edges", "direct"), "edges", "direct"),
        (("--edges", "both"), "edges", "both"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)
def test_options_of_trace_do_what_they_say(
    model: str, option: tuple[str, str], fact: str, expected: Any
) -> None:
    result = command("trace", model, PROMPT, *EXPLAIN, *option, "-o", "a.circuit")
    assert result.exit_code == 0, result.output
    assert read("a.circuit").meta[fact] == expected


def test_gated_neurons_are_read_half_through_each_branch(tmp_path: Path) -> None:
    """And the circuit is tested in its model read the same way."""
    words = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    config = LlamaConfig(vocab_size=len(words), initializer_range=0.5, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "gated")
    words.save_pretrained(tmp_path / "gated")
    asked = ("trace", "gated", PROMPT, *EXPLAIN, "--max-nodes", "20")
    for split in ((), ("--split", "half")):
        assert command(*asked, *split, "-o", f"{len(split)}.circuit").exit_code == 0
    plain, half = read("0.circuit"), read("2.circuit")
    assert half.meta["layers"]["split"] == "half" and "split" not in plain.meta["layers"]
    attributions = [one.nodes["attribution"].abs().sum() for one in (plain, half)]
    assert attributions[0] != pytest.approx(attributions[1], rel=1e-3)
    tested = command("test", "2.circuit")
    assert tested.exit_code == 0, tested.output


def test_trace_with_test_prints_both_verdicts(model: str) -> None:
    result = command("trace", model, PROMPT, *EXPLAIN, "--test")
    assert result.exit_code == 0, result.output
    assert "held: predicted = measured" in result.stdout
    assert "free: the real model" in result.stdout


def test_plan_prints_the_cost_and_traces_nothing(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution.sweep, "sweep", None)
    monkeypatch.setattr(circuits.tracer, "traced_sweep", None)
    result = command("plan", model, PROMPT, *EXPLAIN)
    assert result.exit_code == 0, result.output
    for words in ("download 0 B", "weights  model", "target ", "nodes ", "passes ", "memory "):
        assert words in result.stdout
    assert result.stdout.count("free on cpu") == 2
    assert list(Path.cwd().iterdir()) == []


def test_plan_as_json_says_the_same(model: str) -> None:
    told = json.loads(command("plan", model, PROMPT, *EXPLAIN, "--json").stdout)
    run = load(model).run(PROMPT)
    target = run.logit(" Mary") - run.logit(" John")
    assert told["target"] == target.label and told["value"] == pytest.approx(target.value)
    assert told["trace"]["edges"] == circuits.plan(target).edges > 0
    assert (
        told["loading"]["bytes"] == told["loading"]["model_bytes"] + told["loading"]["layer_bytes"]
    )
    dry = json.loads(command("plan", model, PROMPT, *EXPLAIN, "--json", "--dry").stdout)
    assert list(dry) == ["loading"]


def test_show_prints_prunes_and_draws(saved: str) -> None:
    whole = command("show", saved)
    assert whole.exit_code == 0 and whole.stderr == ""
    assert whole.stdout.strip() == repr(read(saved)).strip()
    small = command("show", saved, "--prune", "0.5", "-o", "a.svg", "-o", "small.circuit")
    assert small.exit_code == 0
    assert "pruned to 50%" in small.stdout and "wrote a.svg" in small.stdout
    assert read("small.circuit").meta["pruned"] == 0.5


@pytest.mark.parametrize("count", [1, 3, 8])
def test_show_prints_so_many_paths(saved: str, count: int) -> None:
    result = command("show", saved, "--paths", str(count))
    assert result.exit_code == 0
    table = read(saved).paths(count)
    lines = result.stdout.splitlines()
    wanted = [
        clip(f"{flow:>12.4f}  {text.rpartition(' → ')[0]} → target", 80)
        for flow, text in zip(table["flow"], table["text"], strict=True)
    ]
    first = lines.index(wanted[0])
    assert lines[first : first + count + 1] == [*wanted, ""]
    assert max(map(len, lines)) <= 80


# ---------------------------------------------------------------- wrong arguments end with 2


WRONG = [
    (("trace",), ("Missing argument",)),
    (("trace", "{model}", "When Mary"), ("Missing option", "--explain")),
    (("trace", "{model}", PROMPT, "--explain", " Zebediah"), ("' Zebediah'", "Give a token")),
    (("trace", "{model}", "Zebediah went", *EXPLAIN), ("'Zebediah'", "vocabulary")),
    (("trace", "{model}", "", *EXPLAIN), ("empty",)),
    (("trace", "{model}", "Mary " * 99, *EXPLAIN), ("100 tokens", "context is 24")),
    (("trace", "four-task", PROMPT, *EXPLAIN), ("Did you mean 'four-tasks'?",)),
    (("trace", "./none", PROMPT, *EXPLAIN), ("'./none'", "no such folder")),
    (("trace", "some-one/nothing", PROMPT, *EXPLAIN), ("some-one/nothing", "cannot be opened")),
    (("trace", "{model}", PROMPT, *EXPLAIN, "--threshold", "-1"), ("threshold=-1.0",)),
    (
        ("trace", "{model}", PROMPT, *EXPLAIN, "--threshold", "much"),
        ("--threshold", "valid number"),
    ),
    (("trace", "{model}", PROMPT, *EXPLAIN, "--max-nodes", "0"), ("max_nodes=0",)),
    (("trace", "{model}", PROMPT, *EXPLAIN, "--mlp", "./none"), ("mlp='none'", "no such folder")),
    (
        ("trace", "{model}", PROMPT, *EXPLAIN, "--attention", "lorse"),
        ("attention='lorse'", "'lorsa'"),
    ),
    (("trace", "{model}", PROMPT, *EXPLAIN, "--device", "toaster"), ("device='toaster'",)),
    (("trace", "{model}", PROMPT, *EXPLAIN, "--dtype", "int8"), ("dtype='int8'",)),
    (("trace", "{model}", PROMPT, *EXPLAIN, "--split", "third"), ("split='third'", "half")),
    (("trace", "{model}", PROMPT, *EXPLAIN, "--split", "half"), ("gated MLPs", "Leave split out")),
    (("trace", "{model}", PROMPT, *EXPLAIN, "-o", "a.pdf"), ("a.pdf", ".circuit, .html")),
    (("trace", "{model}", PROMPT, *EXPLAIN, "-o", "none/a.svg"), ("no folder", "mkdir -p")),
    (("plan", "{model}", PROMPT, *EXPLAIN, "--max-nodes", "0"), ("max_nodes=0",)),
    (("plan", "{model}", PROMPT, *EXPLAIN, "--dry", "--mlp", "lorsa"), ("lorsa", "circuits list")),
    (("list", "gpt-3"), ("gpt-3", "no layers", "Nearest: 'gpt2'", "google/gemma-2-2b")),
    (("show",), ("Missing argument",)),
    (("show", "none.circuit"), ("none.circuit", "no file")),
    (("show", "{model}"), ("not a file",)),
    (("show", "{saved}", "--prune", "0"), ("above 0 and at most 1",)),
    (("show", "{saved}", "--paths", "0"), ("1 or more",)),
    (("show", "{saved}", "-o", "a.pdf"), ("a.pdf", ".circuit, .html")),
    (("demo", "--task", "chess"), ("chess", "ioi")),
    (("explain",), ("No such command", "explain")),
]


@pytest.mark.parametrize(("words", "says"), WRONG, ids=lambda part: " ".join(part)[:60])
def test_wrong_arguments_end_with_two(
    words: tuple[str, ...], says: tuple[str, ...], model: str, saved: str
) -> None:
    places = {"{model}": model, "{saved}": saved}
    result = command(*(places.get(word, word) for word in words))
    assert_refused(result, *says)
    assert list(Path.cwd().iterdir()) == []


def test_a_wrong_ending_is_refused_before_any_work(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuits.tracer, "traced_sweep", None)
    assert_refused(command("trace", model, PROMPT, *EXPLAIN, "-o", "a.pdf"), "a.pdf")
    result = command("trace", model, PROMPT, *EXPLAIN, "-o", "none/a.circuit")
    assert_refused(result, "no folder", "mkdir -p")


# ---------------------------------------------------------------- a failed check ends with 1


def off(value: Any) -> Any:
    """An identity that does not hold, or that is not even a number."""
    return lambda *_: value


@pytest.mark.parametrize("broken", [0.01, float("nan")])
def test_a_broken_knock_out_ends_with_one(
    broken: float, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuits.testing.KnockOuts, "deviation", property(off(broken)))
    result = command("trace", model, PROMPT, *EXPLAIN, "--test", "-o", "a.circuit")
    assert result.exit_code == 1
    assert "failed checks" in result.stderr and "knock-outs" in result.stderr
    assert "failed checks" not in result.stdout


def test_a_sum_that_does_not_close_ends_with_one(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_total = attribution.sweep.Leaves.total
    monkeypatch.setattr(attribution.sweep.Leaves, "total", lambda self: true_total(self) + 0.1)
    result = command("trace", model, PROMPT, *EXPLAIN)
    assert result.exit_code == 1
    assert "closure" in result.stderr


# ---------------------------------------------------------------- the bundled model


@pytest.mark.parametrize("task", TASKS)
def test_demo_explains_tests_and_writes(task: str) -> None:
    result = command("demo", "--task", task)
    assert result.exit_code == 0, result.output
    for words in ("nodes ", "they add up to the target", "held: predicted = measured", "next: "):
        assert words in result.stdout
    circuit = read(f"demo/{task}.circuit")
    assert circuit.meta["model"] == "four-tasks"
    assert Path(f"demo/{task}.svg").read_text().startswith("<svg")


def test_demo_writes_where_it_is_told() -> None:
    assert command("demo", "-o", "here").exit_code == 0
    assert sorted(path.name for path in Path("here").iterdir()) == [
        "ioi.circuit",
        "ioi.html",
        "ioi.svg",
    ]


def test_every_command_the_help_and_the_demo_propose_works() -> None:
    """The examples, run as they stand."""
    for name in ("trace", "plan", "list"):
        text = " ".join(command(name, "--help").stdout.split())
        words = re.search(rf"Example: circuits ({name} .*?)(?= [╭│]|$)", text)
        assert words is not None, text
        parts = re.findall(r'"[^"]*"|\S+', words[1])
        result = command(*(part.strip('"') for part in parts))
        assert result.exit_code == 0, result.output
    done = command("demo").stdout
    shown = re.search(r"next: circuits (show \S+)", done)
    assert shown is not None and command(*shown[1].split()).exit_code == 0
    assert json.loads(json.dumps(read("demo/ioi.circuit").meta))["model"] == "four-tasks"
