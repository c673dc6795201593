"""Trade-off plots with matplotlib, without a display, as PNG or as SVG for a page."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import require_extra

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
}


@dataclass(frozen=True)
class Mark:
    """One measured point.

    Attributes:
        label: Its name.
        y: Value on the vertical axis, the same in every panel.
        x: Value on the horizontal axis of each panel; None leaves the point out of that panel.
        y_range: Ends of the vertical error bar, or None.
        x_ranges: Ends of the horizontal error bar of each panel, or None.
    """

    label: str
    y: float
    x: Sequence[float | None]
    y_range: tuple[float, float] | None = None
    x_ranges: Sequence[tuple[float, float] | None] = field(default=())


def tradeoff(
    marks: Sequence[Mark],
    x_labels: Sequence[str],
    y_label: str,
    *,
    title: str = "",
    caption: str = "",
    ratio: float = 3,
) -> Figure:
    """Draws labelled points with error bars in panels that share the vertical axis.

    A dashed line marks the first point, the baseline.

    Args:
        marks: The points, the baseline first.
        x_labels: Label of each panel's horizontal axis.
        y_label: Label of the vertical axis.
        title: Heading.
        caption: A sentence under the plot, for example on the error bars.
        ratio: Ratio of largest to smallest value from which a horizontal axis is logarithmic.

    Returns:
        A matplotlib figure, for `write_png` and `to_svg`.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require_extra("report", "matplotlib", what="A plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _styled():
        figure = Figure(figsize=(5.6 * len(x_labels), 4.6), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(x_labels), sharey=True, squeeze=False)[0]
        for number, (axis, x_label) in enumerate(zip(axes, x_labels, strict=True)):
            _draw_panel(axis, marks, number, ratio)
            axis.set_xlabel(x_label)
        axes[0].set_ylabel(y_label)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        if caption:
            figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color=_SOFT)
        # Labels are placed after the layout is computed and fixed.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for number, axis in enumerate(axes):
            _label(axis, marks, number)
    return figure


def write_png(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Writes a figure as a PNG file."""
    with _styled():
        figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """Returns a figure as an `<svg>` element for a page."""
    sink = io.StringIO()
    with _styled():
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    return text[text.index("<svg") :].rstrip()


def _styled() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _draw_panel(axis: Axes, marks: Sequence[Mark], number: int, ratio: float) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(True, color=_RULE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.margins(x=0.14, y=0.12)
    shown = [(index, mark, mark.x[number]) for index, mark in enumerate(marks)]
    places = [x for _, _, x in shown if x is not None]
    if places and min(places) > 0 and max(places) / min(places) >= ratio:
        _logarithmic(axis)
    if marks:
        axis.axhline(marks[0].y, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for index, mark, x in shown:
        if x is None:
            continue
        colour = _COLOURS[index % len(_COLOURS)]
        x_range = mark.x_ranges[number] if mark.x_ranges else None
        axis.errorbar(
            [x],
            [mark.y],
            xerr=_error(x, x_range),
            yerr=_error(mark.y, mark.y_range),
            fmt="o",
            markersize=8,
            color=colour,
            ecolor=colour,
            elinewidth=1.4,
            capsize=3,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=3,
        )


def _logarithmic(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _error(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    return None if ends is None else [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]


def _label(axis: Axes, marks: Sequence[Mark], number: int) -> None:
    """Places each label next to its point, where it overlaps least with others."""
    from matplotlib.transforms import Bbox

    figure: Any = axis.figure
    renderer = figure.canvas.get_renderer()
    inside = axis.get_window_extent(renderer)
    shown = [(index, mark, x) for index, mark in enumerate(marks) if (x := mark.x[number]) is not None]
    taken: list[tuple[Any, float]] = []
    for _, mark, x in shown:
        left, below = axis.transData.transform((x, mark.y))
        taken.append((Bbox.from_extents(left - 7, below - 7, left + 7, below + 7), 1.0))
        low, high = axis.transData.transform([(x, y) for y in mark.y_range or (mark.y, mark.y)])
        taken.append((Bbox.from_extents(low[0] - 2, low[1], high[0] + 2, high[1]), 0.5))
    pixels = figure.dpi / 72
    for index, mark, x in sorted(shown, key=lambda one: -one[1].y):
        note = axis.annotate(
            mark.label,
            (x, mark.y),
            (0, 0),
            textcoords="offset points",
            color=_COLOURS[index % len(_COLOURS)],
            fontsize=9,
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        )
        size = note.get_window_extent(renderer)
        left, below = axis.transData.transform((x, mark.y))
        places: list[tuple[float, int, Any]] = []
        for dx, dy, side, height in _OFFSETS:
            x0 = left + dx * pixels - (size.width if side == "right" else 0)
            y0 = below + dy * pixels - (size.height if height == "top" else 0)
            box = Bbox.from_bounds(x0 - 1, y0 - 1, size.width + 2, size.height + 2)
            cost = sum(weight * _shared(box, other) for other, weight in taken)
            cost += 4 * (box.width * box.height - _shared(box, inside))
            cost += 0.01 * box.width * box.height * (abs(dx) / abs(_OFFSETS[0][0]) - 1)  # prefers near places
            places.append((cost, len(places), box))
        _, best, box = min(places, key=lambda place: place[:2])
        dx, dy, side, height = _OFFSETS[best]
        note.xyann = (dx, dy)
        note.set(ha=side, va=height)
        taken.append((box, 1.0))


_OFFSETS = [
    (dx * step, dy * step, side, height)
    for step in (1.0, 1.9, 2.9)
    for dx, dy, side, height in (
        (8, 6, "left", "bottom"),
        (-8, 6, "right", "bottom"),
        (8, -6, "left", "top"),
        (-8, -6, "right", "top"),
    )
]


def _shared(a: Any, b: Any) -> float:
    """Returns the overlap of two boxes in square pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))
