from .layout import Entry as Entry
from .layout import LayoutKind as LayoutKind
from .layout import register as register
from .quantizer import add_layout as add_layout
from .quantizer import foreign as foreign
from .quantizer import layouts as layouts
from .quantizer import load as load
from .quantizer import rename_modules as rename_modules
from .sparse import mark_sparse as mark_sparse

__all__: list[str] = [
    "Entry",
    "LayoutKind",
    "add_layout",
    "foreign",
    "layouts",
    "load",
    "mark_sparse",
    "register",
    "rename_modules",
]
