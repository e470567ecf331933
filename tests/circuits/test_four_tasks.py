"""The bundled model: every claim about its prompts is tested, with transcoders and with neurons."""

import json
from functools import cache
from importlib import resources

import pytest
import torch

from circuits import Circuit, ReplacementModel, load, trace
from graphs.nodes import INTERIOR, SOURCES
from replacement.run import Run

TOLERANCE = 1e-4
"""What identities hold to in float32."""
STORED = resources.files("replacement") / "bundled" / "four-tasks" / "prompts.json"
READINGS = ("transcoders heads", "neurons heads", "transcoders lorsa", "transcoders attention-saes")
"""What MLPs and attention are read as."""


def examples() -> list[dict[str, str]]:
    """The stored prompts; none where the model is not built yet, which one test then says."""
    if not STORED.is_file():
        return []
    return json.loads(STORED.read_text(encoding="utf-8"))


def shortest() -> list[dict[str, str]]:
    """One prompt of each task."""
    ranked = sorted(examples(), key=lambda example: len(example["prompt"]), reverse=True)
    return list({example["task"]: example for example in ranked}.values())


def named(example: object) -> str:
    return example["task"] + "-" + example["prompt"][:24] if isinstance(example, dict) else ""


each_reading = pytest.mark.parametrize("reading", READINGS)
each_example = pytest.mark.parametrize("example", examples(), ids=named)


def loaded(reading: str, dtype: str = "float32") -> ReplacementModel:
    mlp, attention = reading.split()
    return load("four-tasks", mlp=mlp, attention=attention, device="cpu", dtype=dtype)


@cache
def model(reading: str) -> ReplacementModel:
    return loaded(reading)


@cache
def run_of(reading: str, prompt: str) -> Run:
    return model(reading).run(prompt)


@cache
def traced(reading: str, prompt: str, explain: str, minus: str) -> Circuit:
    run = run_of(reading, prompt)
    return trace(run.logit(explain) - run.logit(minus), progress=False)


def circuit_of(reading: str, example: dict[str, str]) -> Circuit:
    return traced(reading, example["prompt"], example["explain"], example["minus"])


def test_there_are_prompts_of_all_four_tasks() -> None:
    tasks = [example["task"] for example in examples()]
    assert set(tasks) == {"ioi", "induction", "bracket", "greater_than"}


@each_reading
@each_example
def test_every_sum_closes(example: dict[str, str], reading: str) -> None:
    circuit = circuit_of(reading, example)
    assert max(circuit.meta["checks"].values()) <= TOLERANCE
    for share in (None, 0.8):
        part = circuit if share is None else circuit.prune(share)
        within = TOLERANCE * float(circuit.nodes["attribution"].abs().sum())
        assert abs(part.explained.sum() - circuit.value) <= within
        assert part.data.conservation() <= TOLERANCE


@each_reading
@each_example
def test_every_held_knock_out_does_what_was_predicted(
    example: dict[str, str], reading: str
) -> None:
    """With everything held, for every node: to 1e-4 of the largest effect."""
    circuit = circuit_of(reading, example)
    result = circuit.test(progress=False)
    scale = max(result.table["predicted"].abs().max(), abs(circuit.value))
    off = (result.table["predicted"] - result.table["held"]).abs()
    assert (off <= TOLERANCE * scale).all()
    assert result.deviation <= TOLERANCE
    assert set(circuit.nodes.index[circuit.data.is_kind(*INTERIOR, *SOURCES)]) <= set(
        result.table.index
    )


@each_reading
@pytest.mark.parametrize("example", shortest(), ids=named)
def test_it_holds_in_the_pruned_circuit_too(example: dict[str, str], reading: str) -> None:
    small = circuit_of(reading, example).prune(0.8)
    assert small.test(progress=False).deviation <= TOLERANCE


@each_reading
@each_example
def test_it_explains_the_model_of_hugging_face(example: dict[str, str], reading: str) -> None:
    """The value is the original model's, and what was learnt is what is explained."""
    run, circuit = run_of(reading, example["prompt"]), circuit_of(reading, example)
    hf_model = model(reading).hf_model
    with torch.no_grad():
        logits = hf_model(run.token_ids[None]).logits[0, -1]
    wanted = [
        model(reading).tokenizer.convert_tokens_to_ids(example[key]) for key in ("explain", "minus")
    ]
    assert circuit.value == pytest.approx(float(logits[wanted[0]] - logits[wanted[1]]), abs=1e-3)
    assert circuit.value > 0
    assert len(circuit.paths(5)) == 5


@each_example
def test_neurons_leave_no_error(example: dict[str, str]) -> None:
    circuit = circuit_of("neurons heads", example)
    assert abs(circuit.explained["error"]) <= TOLERANCE * abs(circuit.value)
    assert "error" not in set(circuit.nodes["kind"])


@each_reading
def test_a_weight_changed_after_the_run_is_noticed(reading: str) -> None:
    """The negative control: the test of a circuit fails where the circuit is wrong."""
    example = shortest()[-1]
    broken = loaded(reading)
    run = broken.run(example["prompt"])
    circuit = trace(run.logit(example["explain"]) - run.logit(example["minus"]), progress=False)
    assert circuit.test(progress=False).deviation <= TOLERANCE
    with torch.no_grad():
        if "lorsa" in reading:
            lorsa = broken.weights.layers[2].attention
            assert lorsa is not None
            lorsa.write.mul_(1.05)
        else:
            broken.hf_model.get_submodule("transformer.h.2.attn.c_proj").weight.mul_(1.05)
    assert circuit.test(progress=False).deviation > 10 * TOLERANCE


@each_reading
def test_float64_is_exact(reading: str) -> None:
    example = shortest()[-1]
    run = loaded(reading, dtype="float64").run(example["prompt"])
    circuit = trace(run.logit(example["explain"]) - run.logit(example["minus"]), progress=False)
    assert max(circuit.meta["checks"].values()) <= 1e-9
    assert circuit.test(progress=False).deviation <= 1e-9
