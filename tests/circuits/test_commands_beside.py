"""`circuits compare` and `circuits features`: what they print, against the library itself."""

import json
from pathlib import Path

import pytest

from circuits import Circuit, build_features, compare, load, read, read_cards, trace
from graphs.files import save
from tests.circuits.folders import PROMPT, save_text_model, text_model, tokenizer
from tests.circuits.shell import command, heavy_imports
from tests.graphs import samples

pytestmark = pytest.mark.usefixtures("at_the_shell")


@pytest.fixture
def two() -> tuple[str, str]:
    """A circuit, and a part of it beside what another has."""
    whole = samples.circuit_like()
    save(whole, "a.circuit")
    save(Circuit(whole).prune(0.6).data, "b.circuit")
    return "a.circuit", "b.circuit"


def test_compare_prints_what_compare_says(two: tuple[str, str]) -> None:
    found = compare(read(two[0]), read(two[1]))
    assert len(found.only_a) > 0 and len(found.only_b) == 0
    result = command("compare", *two)
    assert result.exit_code == 0 and result.stdout == f"{found}\n"
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_compare_as_json_and_as_a_page(two: tuple[str, str]) -> None:
    found = compare(read(two[0]), read(two[1]))
    result = command("compare", *two, "--json", "-o", "both.html")
    told = json.loads(result.stdout)
    assert [row["name"] for row in told["only_a"]] == found.only_a["name"].tolist()
    assert told["shared"][0]["b"] == found.shared["b"].iloc[0] and told["only_b"] == []
    assert told["scores"]["nodes"]["jaccard"] == found.scores.loc["nodes", "jaccard"] < 1
    assert result.stderr == "wrote both.html\n"
    assert Path("both.html").read_text() == read(two[0]).page(read(two[1]))


def test_compare_pools_positions_when_asked(two: tuple[str, str]) -> None:
    told = json.loads(command("compare", *two, "--pooled", "--json").stdout)
    pooled = compare(read(two[0]), read(two[1]), roles="pooled")
    assert told["scores"] == pooled.scores.to_dict("index")
    names = [row["name"] for row in told["shared"]]
    assert names == pooled.shared["name"].tolist() and not [name for name in names if "@" in name]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_text_model(tmp_path_factory.mktemp("model")))


def test_features_are_built_and_shown(model: str) -> None:
    prompts = [PROMPT, PROMPT.replace("Mary and John", "John and Mary")]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    built = command("features", "build", model, "prompts.jsonl", "-o", "cards", "--top", "1")
    assert built.exit_code == 0, built.output
    cards = read_cards("cards")
    assert f"{cards}\nwrote cards\n" == built.stdout and cards.facts["prompts"] == 2
    mine = build_features(load(model), prompts, "mine", top=1, progress=False)
    name = mine.features.sort_values("fired")["name"].iloc[-1]
    shown = command("features", "show", "cards", name)
    assert shown.exit_code == 0 and shown.stdout == f"{mine.card(name)}\n"
    told = json.loads(command("features", "show", "cards", name, "--json").stdout)
    assert told["name"] == name and told["rate"] == mine.card(name).feature["rate"]
    assert [row["pos"] for row in told["examples"]] == mine.examples(name)["pos"].tolist()
    assert {row["relation"] for row in told["tokens"]} >= {"promoted", "suppressed"}


@pytest.mark.parametrize("name", ["build", "show"])
def test_features_show_examples(name: str) -> None:
    text = " ".join(command("features", name, "--help").stdout.split())
    assert f"Example: circuits features {name}" in text


def test_compare_and_cards_without_torch(two: tuple[str, str], model: str) -> None:
    build_features(load(model), [PROMPT], "cards", top=1, tokens=0, progress=False)
    name = read_cards("cards").features["name"].iloc[0]
    for words in (("compare", *two, "-o", "c.html"), ("features", "show", "cards", name)):
        assert heavy_imports(*words) == []


# ---------------------------------------------------------------- cards in a circuit


def test_a_circuit_keeps_the_cards_of_its_features(tmp_path: Path) -> None:
    hf = text_model()
    given = load(hf, tokenizer=tokenizer())
    prompts = [PROMPT, PROMPT.replace("Mary and John", "John and Mary"), "When Mary and John"]
    cards = build_features(given, prompts, tmp_path / "cards", top=5, tokens=7, progress=False)
    circuit = trace(given.run(PROMPT).logit(" Mary"), max_nodes=30)
    kept = circuit.detailed(tokens=0, attention=0, cards=cards).meta["details"]
    assert list(kept) == ["cards"] and len(kept["cards"]) > 5
    nodes = circuit.nodes
    carded = nodes.index[nodes["kind"].eq("neuron")]
    assert {int(node) for node in kept["cards"]} == set(carded), "plain heads have no card"
    for node in carded:
        row = nodes.loc[node]
        card = cards.card((int(row["layer"]), "mlp", int(row["index"])))
        told = kept["cards"][str(node)]
        assert told["name"] == card.feature["name"]
        assert (told["rate"], told["strongest"]) == (
            card.feature["rate"],
            card.feature["strongest"],
        )
        columns = ["before", "token", "after", "activation"]
        assert told["examples"] == card.examples[columns].head(3).to_numpy(object).tolist()
        for relation in ("promoted", "suppressed"):
            words = card.tokens[card.tokens["relation"].eq(relation)].sort_values("rank")
            assert told[relation] == words[["token", "weight"]].head(5).to_numpy(object).tolist()
    saved = circuit.detailed(tokens=0, attention=0, cards=cards).save(tmp_path / "a.circuit")
    assert read(saved).meta["details"] == kept


def test_cards_without_tokens_are_kept_too(tmp_path: Path) -> None:
    given = load(text_model(), tokenizer=tokenizer())
    cards = build_features(given, [PROMPT], tmp_path / "cards", tokens=0, progress=False)
    circuit = trace(given.run(PROMPT).logit(" Mary"), max_nodes=10)
    kept = circuit.detailed(tokens=0, attention=0, cards=cards).meta["details"]["cards"]
    assert kept and all(card["promoted"] == [] for card in kept.values())
