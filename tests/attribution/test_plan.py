"""The plan is an upper bound, and what does not fit is refused before it is made."""

import re

import pytest

from attribution import plan as planning
from attribution.flow import flow_edges
from attribution.sweep import sweep
from circuits import plan, trace
from tests.samples import LEARNED, Case, random_run

CASES = [
    Case("two layers", "neurons"),
    Case("deep", "topk"),
    Case("full context", "relu", skip=True),
    Case("one token", "jumprelu"),
    LEARNED[1],
    LEARNED[5],
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_count_of_edges_is_a_close_bound(case: Case) -> None:
    """No more edges than counted, and with nothing at zero most of them."""
    run = random_run(case)
    target = run.logit(1)
    sublayers = run.sublayers
    swept = sweep(target, sublayers)
    flow = flow_edges(target, sublayers, swept)
    places = [layer.positions()[kept] for layer, kept in zip(sublayers, swept.kept(), strict=True)]
    bound = planning.edges_among(sublayers, places)
    reaching_target = bound - 2 * (len(run.tokens) - 1)  # the target reads one position only
    assert len(flow.amount) <= bound
    assert len(flow.amount) >= 0.5 * reaching_target


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_bounds_what_trace_makes(case: Case) -> None:
    target = random_run(case).logit(1)
    for max_nodes in (1, 5, None):
        planned = plan(target, max_nodes)
        circuit = trace(target, 0, max_nodes=max_nodes)
        assert len(circuit.edges) <= planned.edges
        for kind, count in planned.nodes.items():
            assert circuit.data.is_kind(kind).sum() <= count
        assert str(planned.n_tokens) in str(planned)


def test_smooth_neurons_have_a_default_bound() -> None:
    assert plan(random_run(Case("two layers", "neurons")).logit(1)).max_nodes == 500
    assert plan(random_run(Case("two layers", "topk")).logit(1)).max_nodes is None


def test_what_does_not_fit_is_refused_with_a_number_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With little memory free the trace is refused; the `max_nodes` it names is accepted."""
    target = random_run(Case("full context", "relu")).logit(1)
    circuit = trace(target, 0)
    everything = plan(target).bytes
    monkeypatch.setattr(planning, "free_bytes", lambda _: everything // 3)
    with pytest.raises(MemoryError, match=r"are free\. Fits: max_nodes=") as refused:
        trace(target, 0)
    fits = re.search(r"max_nodes=(\d+)", str(refused.value))
    assert fits is not None
    smaller = trace(target, 0, max_nodes=int(fits[1]))
    assert len(smaller.edges) < len(circuit.edges)
