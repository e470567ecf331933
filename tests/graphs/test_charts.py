"""Charts: points where the numbers say, labels as text, files by their ending."""

import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from graphs.files.charts import write_chart
from graphs.view.charts import HEIGHT, LEFT, TOP, WIDTH, chart

SVG = "{http://www.w3.org/2000/svg}"
NASTY = 'a<b> & "c" </svg>'


def dots(text: str) -> list[tuple[float, float]]:
    circles = ElementTree.fromstring(text).iter(f"{SVG}circle")
    return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in circles]


def test_points_are_where_the_numbers_say() -> None:
    text = chart("t", ("x", "y"), dots={"a": [(0, -1), (1, 1), (4, 3)]})
    *points, _legend = dots(text)
    up = [TOP + HEIGHT * (3 - y) / 4 for y in (-1, 1, 3)]
    across = [LEFT + WIDTH * x / 4 for x in (0, 1, 4)]
    assert points == [(round(x, 1), round(y, 1)) for x, y in zip(across, up, strict=True)]


def test_a_logarithmic_axis_and_a_cut_one() -> None:
    text = chart(
        "t", ("x", "y"), lines={"a": [(1, 0), (10, 5), (100, 1)]}, high=1, logarithmic=True
    )
    (line,) = ElementTree.fromstring(text).iter(f"{SVG}polyline")
    places = [tuple(map(float, one.split(","))) for one in line.attrib["points"].split()]
    assert places[1] == (LEFT + WIDTH / 2, TOP), "half way between 1 and 100, cut to the top"


def test_names_are_text() -> None:
    text = chart(NASTY, (NASTY, NASTY), lines={NASTY: [(0, 1)]}, dots={NASTY: [(0, 1)]})
    root = ElementTree.fromstring(text)
    shown = [one.text for one in root.iter(f"{SVG}text")]
    assert shown.count(NASTY) == 5 and len(list(root.iter(f"{SVG}svg"))) == 1


def test_what_has_no_place_is_left_out_and_nothing_at_all_is_refused() -> None:
    points = [(0.0, 1.0), (1.0, float("nan")), (float("inf"), 2.0)]
    assert len(dots(chart("t", ("x", "y"), dots={"a": points}))) == 1 + 1
    with pytest.raises(ValueError, match=r"chart\('t'\): no points"):
        chart("t", ("x", "y"), dots={"a": points[1:]})


def test_files_by_their_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = chart("t", ("x", "y"), dots={"a": [(0, 1)]})
    assert write_chart(text, tmp_path / "a.SVG").read_text() == text
    with pytest.raises(ValueError, match=r"'.*a.html' ends in '.html'; a chart is .svg or .png"):
        write_chart(text, tmp_path / "a.html")
    cairo = types.ModuleType("cairosvg")
    cairo.svg2png = lambda bytestring, scale: b"PNG%d" % (len(bytestring) * scale)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cairosvg", cairo)
    monkeypatch.setattr("graphs.files.find_spec", lambda _: object())
    assert write_chart(text, tmp_path / "a.png").read_bytes() == b"PNG%d" % (2 * len(text))
    monkeypatch.setattr("graphs.files.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="png needs cairosvg"):
        write_chart(text, tmp_path / "b.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.SVG", "a.png"]
