"""Plots hold what they were given, stand alone, and say what is missing."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like import errors
from datadreamer_like.errors import MissingExtra
from datadreamer_like.report import Mark, to_svg, tradeoff, write_png

pytest.importorskip("matplotlib")

MARKS = [
    Mark("Teacher & co", 72.0, [91.0, 9.8]),
    Mark("Student", 71.0, [23.0, 2.1], (69.0, 72.5), [None, (1.9, 2.4)]),
    Mark("Somewhere else", 65.0, [None, 30.0]),
]


def _drawn() -> Any:
    return tradeoff(MARKS, ["size (MB)", "latency (ms)"], "accuracy (%)", title="A title", caption="A caption.")


def test_svg_holds_every_label_as_text_and_loads_nothing():
    svg = to_svg(_drawn())
    root = ElementTree.fromstring(svg)
    texts = ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("}text")]
    for text in ("Teacher & co", "Student", "size (MB)", "latency (ms)", "accuracy (%)", "A title", "A caption."):
        assert text in texts
    assert texts.count("Student") == 2
    assert texts.count("Somewhere else") == 1
    links = [value for node in root.iter() for name, value in node.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)


def test_png_is_an_image_of_two_panels(tmp_path: Path):
    path = tmp_path / "plot.png"
    write_png(_drawn(), path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width > 2 * height


def test_same_marks_give_the_same_file(tmp_path: Path):
    for name in ("a", "b"):
        write_png(_drawn(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert to_svg(_drawn()) == to_svg(_drawn())


def test_axis_is_logarithmic_only_where_values_are_far_apart():
    figure = tradeoff([Mark("a", 1, [1.0, 1.0]), Mark("b", 2, [100.0, 1.2])], ["x", "y"], "z")
    assert [axis.get_xscale() for axis in figure.axes] == ["log", "linear"]


def test_bars_reach_from_end_to_end():
    axis = _drawn().axes[1]
    ends = {tuple(point) for line in axis.collections for path in line.get_paths() for point in path.vertices}
    assert {(1.9, 71.0), (2.4, 71.0), (2.1, 69.0), (2.1, 72.5)} <= ends


def test_labels_do_not_cover_each_other():
    marks = [Mark(f"model {i}", 70 + i * 0.01, [10 + i * 0.01]) for i in range(5)]
    figure = tradeoff(marks, ["x"], "y")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 5
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1 for a, b in pairs)


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "datadreamer-like\[report\]"'):
        _drawn()
