"""Published circuits: the sizes their sources give, and where they are known to differ."""

import pytest

from benchmarks.tasks.published import PublishedCircuit, published_circuits


def one(name: str) -> PublishedCircuit:
    return published_circuits()[name]


@pytest.mark.parametrize(
    ("name", "heads", "mlps"),
    [
        ("IOI, Wang et al. paper", 26, 0),
        ("IOI, O'Neill & Bui", 26, 0),
        ("IOI, ACDC canonical", 26, 12),
        ("greater-than, Hanna et al. code", 10, 8),
        ("greater-than, ACDC canonical", 9, 8),
        ("greater-than, O'Neill & Bui", 9, 0),
        ("greater-than, EAP-IG", 8, 0),
        ("docstring, Heimersheim & Janiak", 8, 0),
        ("docstring, with the three added", 11, 0),
        ("docstring, O'Neill & Bui", 6, 0),
        ("sequence, numerals", 14, 11),
        ("sequence, number words", 19, 12),
        ("sequence, months", 13, 10),
        ("sequence, shared by all three", 8, 0),
    ],
)
def test_sizes(name: str, heads: int, mlps: int) -> None:
    assert (len(one(name).heads), len(one(name).mlps)) == (heads, mlps)


def test_known_differences() -> None:
    paper, oneill = (one(name).heads for name in ("IOI, Wang et al. paper", "IOI, O'Neill & Bui"))
    assert paper - oneill == {(9, 0)}
    assert oneill - paper == {(11, 3)}
    code, canonical = (
        one(f"greater-than, {name}").heads for name in ("Hanna et al. code", "ACDC canonical")
    )
    assert code - canonical == {(5, 1), (8, 8)}
    assert canonical - code == {(6, 1)}


def test_the_shared_heads_of_sequences_are_those_of_all_three() -> None:
    kinds = ("numerals", "number words", "months")
    common = frozenset.intersection(*(one(f"sequence, {kind}").heads for kind in kinds))
    assert common == one("sequence, shared by all three").heads
    assert (1, 5) not in common


def test_every_head_is_of_its_model() -> None:
    shapes = {"gpt2-small": (12, 12), "attn-only-4l": (4, 8)}
    for circuit in published_circuits().values():
        layers, heads = shapes[circuit.model]
        assert all(0 <= layer < layers and 0 <= head < heads for layer, head in circuit.heads)
        listed = sum(map(len, circuit.roles.values()))
        assert listed == len(circuit.heads), "a head has one role"


def test_edges_of_groups_end_in_groups() -> None:
    ioi = one("IOI, ACDC canonical")
    groups = {*ioi.roles, "INPUT", "OUTPUT"}
    assert {name for edge in ioi.group_edges for name in edge[:2]} <= groups
    assert ioi.n_edges == 1041
