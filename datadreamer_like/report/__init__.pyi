from .pages import figure as figure
from .pages import page as page
from .plots import Mark as Mark
from .plots import to_svg as to_svg
from .plots import tradeoff as tradeoff
from .plots import write_png as write_png
from .table import Column as Column
from .table import Interval as Interval
from .table import Table as Table
from .table import frame as frame

__all__: list[str] = [
    "Column",
    "Interval",
    "Mark",
    "Table",
    "figure",
    "frame",
    "page",
    "to_svg",
    "tradeoff",
    "write_png",
]
