from . import plots as plots
from .pages import figure as figure
from .pages import page as page
from .table import Column as Column
from .table import Interval as Interval
from .table import Table as Table
from .table import frame as frame

__all__: list[str] = ["Column", "Interval", "Table", "figure", "frame", "page", "plots"]
