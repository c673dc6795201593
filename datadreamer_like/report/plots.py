"""Trade-off plots and curves with matplotlib, without a display, as PNG or as SVG for a page."""

from __future__ import annotations

import io
import os
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import require_extra
from datadreamer_like.storage.shown import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe palette, without its yellow, which is too pale for text.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D", "#8C6BB1")
_INK, _SOFT, _RULE = "#1d2129", "#667085", "#e4e7ec"
_STYLE: Any = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "datadreamer_like",  # the same plot is the same file
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "text.color": _INK,
    "text.parse_math": False,  # a dollar sign in a name is one
    "text.usetex": False,
}
_LONGEST_LABEL, _LONGEST_LINE = 40, 110


@dataclass(frozen=True)
class Mark:
    """One measured point, with the ends of its error bars.

    `y` is the same in every panel; `x` and `x_ranges` have a value for each panel. The point is left out of a panel
    where its `x` is None.
    """

    label: str
    y: float
    x: Sequence[float | None]
    y_range: tuple[float, float] | None = None
    x_ranges: Sequence[tuple[float, float] | None] = ()


def tradeoff(
    marks: Sequence[Mark],
    x_labels: Sequence[str],
    y_label: str,
    *,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draws labelled points with error bars in panels that share the vertical axis.

    A dashed line marks the first point, the baseline. A horizontal axis is logarithmic if its largest value is at least
    three times its smallest.
    """
    require_extra("report", "matplotlib", what="A plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _styled():
        figure = Figure(figsize=(5.6 * len(x_labels), 4.6), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(x_labels), sharey=True, squeeze=False)[0]
        for number, (axis, x_label) in enumerate(zip(axes, x_labels, strict=True)):
            _draw_panel(axis, marks, number)
            axis.set_xlabel(x_label)
        axes[0].set_ylabel(y_label)
        if title:
            figure.suptitle(one_line(title, _LONGEST_LINE), x=0.01, ha="left", fontsize=12, fontweight="bold")
        if caption:
            lines = textwrap.fill(one_line(caption, 4 * _LONGEST_LINE), _LONGEST_LINE * len(x_labels) // 2)
            figure.supxlabel(lines, x=0.01, ha="left", fontsize=8.5, color=_SOFT)
        # Labels are placed after the layout is computed and fixed.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for number, axis in enumerate(axes):
            _label(axis, marks, number)
    return figure


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> Figure:
    """Draws named curves of x and y values in one panel; values that are not finite are left out by matplotlib."""
    require_extra("report", "matplotlib", what="A plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _styled():
        figure = Figure(figsize=(6.4, 4.0), facecolor="white")
        FigureCanvasAgg(figure)
        axis = figure.add_axes((0.12, 0.13, 0.85, 0.84))  # a computed layout takes longer than all the rest
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color=_RULE, linewidth=0.8)
        for colour, (name, (x, y)) in zip(cycle(_COLOURS), lines.items(), strict=False):
            axis.plot(x, y, color=colour, label=one_line(name, _LONGEST_LABEL), marker="o", markersize=3)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        if lines:
            axis.legend(loc="best", frameon=False)  # given, it does not warn of a second that it took
    return figure


def write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as a PNG file."""
    with _styled():
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """Returns a figure as an `<svg>` element for a page."""
    sink = io.StringIO()
    with _styled():
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    return text[text.index("<svg") :].rstrip()


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A box stands for a character that no font has.
        warnings.filterwarnings(
            "ignore", r"Glyph .* missing from font|Matplotlib currently does not support", UserWarning
        )
        yield


def _draw_panel(axis: Axes, marks: Sequence[Mark], number: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color=_RULE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.margins(x=0.14, y=0.12)
    shown = _shown(marks, number)
    places = [x for _, _, x in shown]
    if places and min(places) > 0 and max(places) / min(places) >= 3:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    if marks:
        axis.axhline(marks[0].y, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    point: Any = {"fmt": "o", "markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.8, "zorder": 3}
    bar: Any = {"elinewidth": 1.4, "capsize": 3}
    for colour, mark, x in shown:
        x_error = _error(x, mark.x_ranges[number] if mark.x_ranges else None)
        y_error = _error(mark.y, mark.y_range)
        axis.errorbar([x], [mark.y], xerr=x_error, yerr=y_error, color=colour, ecolor=colour, **point, **bar)


def _shown(marks: Sequence[Mark], number: int) -> list[tuple[str, Mark, float]]:
    """Returns the marks that a panel shows, with their colours and places on its horizontal axis."""
    colours = zip(cycle(_COLOURS), marks, strict=False)
    return [(colour, mark, x) for colour, mark in colours if (x := mark.x[number]) is not None]


def _error(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    return None if ends is None else [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]


def _label(axis: Axes, marks: Sequence[Mark], number: int) -> None:
    """Places each label next to its point, where it overlaps least with others."""
    from matplotlib.transforms import Bbox

    def area(box: Bbox | None) -> float:
        return 0.0 if box is None else float(box.width * box.height)

    figure: Any = axis.figure
    renderer = figure.canvas.get_renderer()
    inside = axis.get_window_extent(renderer)
    shown = _shown(marks, number)
    taken: list[tuple[Bbox, float]] = []  # boxes in pixels, and how bad it is to cover them
    for _, mark, x in shown:
        left, below = axis.transData.transform((x, mark.y))
        taken.append((Bbox.from_extents(left - 7, below - 7, left + 7, below + 7), 1.0))
        low, high = axis.transData.transform([(x, y) for y in mark.y_range or (mark.y, mark.y)])
        taken.append((Bbox.from_extents(low[0] - 2, low[1], high[0] + 2, high[1]), 0.5))
    style: Any = {"textcoords": "offset points", "fontsize": 9, "zorder": 4}
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    pixels = figure.dpi / 72
    for colour, mark, x in sorted(shown, key=lambda one: -one[1].y):
        note = axis.annotate(
            one_line(mark.label, _LONGEST_LABEL), (x, mark.y), (0, 0), color=colour, bbox=ground, **style
        )
        size = note.get_window_extent(renderer)
        left, below = axis.transData.transform((x, mark.y))
        places: list[tuple[float, int, Bbox]] = []
        for step, right, up in _PLACES:
            x0 = left + right * 8 * step * pixels - (size.width if right < 0 else 0)
            y0 = below + up * 6 * step * pixels - (size.height if up < 0 else 0)
            box = Bbox.from_bounds(x0 - 1, y0 - 1, size.width + 2, size.height + 2)
            cost = sum(weight * area(Bbox.intersection(box, other)) for other, weight in taken)
            cost += 4 * (area(box) - area(Bbox.intersection(box, inside)))
            cost += 0.01 * area(box) * (step - 1)  # prefers near places
            places.append((cost, len(places), box))
        _, best, box = min(places, key=lambda place: place[:2])
        step, right, up = _PLACES[best]
        note.xyann = (right * 8 * step, up * 6 * step)
        note.set(ha="left" if right > 0 else "right", va="bottom" if up > 0 else "top")
        taken.append((box, 1.0))


# Places for a label: the distance from its point, to its right (1) or left (-1), above (1) or below (-1).
_PLACES = [(step, right, up) for step in (1.0, 1.9, 2.9) for up in (1, -1) for right in (1, -1)]
