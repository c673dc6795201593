"""What classes and objects consist of: the part of their attributes that decides what they do."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from .installed import is_installed

_NO_CONTENT = {
    "__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__firstlineno__", "__static_attributes__",
    "__annotations__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__match_args__",
    "__dataclass_params__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__hash__",
    "__dataclass_fields__", "__slotnames__", "_member_map_", "_value2member_map_",
    # Made by pydantic from a model's other members; they hold addresses in memory.
    "__pydantic_core_schema__", "__pydantic_serializer__", "__pydantic_validator__",
}  # fmt: skip


def members_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Yields name and content of what a class itself defines."""
    for name, member in sorted(vars(cls).items()):
        if name in _NO_CONTENT or isinstance(member, types.GetSetDescriptorType | types.MemberDescriptorType):
            continue
        if isinstance(member, staticmethod | classmethod):
            yield name, member.__func__
        else:
            yield name, (member.fget, member.fset, member.fdel) if isinstance(member, property) else member


def metaclass_of(cls: type) -> Iterator[tuple[str, type]]:
    """Yields the metaclass of a class if the user wrote it; that of a compiled class may have no module."""
    module = type(cls).__module__
    if isinstance(module, str) and not is_installed(module):
        yield "metaclass", type(cls)


def state_of(value: Any) -> dict[str, Any]:
    """Returns the attributes of an object, without those computed from others by `cached_property`."""
    state = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                state[slot] = getattr(value, slot)
    return {name: item for name, item in state.items() if not _is_computed(type(value), name)}


def _is_computed(kind: type, name: str) -> bool:
    return any(isinstance(vars(base).get(name), functools.cached_property) for base in kind.__mro__)
