"""DataDreamer's documented names, signatures and defaults, as a table; what differs has its reason in the docs.

A line of `ancestor.txt` is a fact: a name, an attribute, a signature, or what a step registers. Behind ` | ` is what
`docs/migrating.md` says of it where this package differs on purpose.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like.steps import Step
from datadreamer_like.steps.base.registration import registered

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")

RUN = (
    "batch_size=10, batch_scheduler_buffer_size=None, adaptive_batch_size={adaptive}, {seed}progress_interval=60, "
    "force=False, cache_only=False, verbose=None, log_level=None"
)
SAMPLED = (
    "prompts, max_new_tokens=None, temperature=1.0, top_p=0.0, n=1, stop=None, repetition_penalty=None, "
    f"logit_bias=None, {RUN}, total_num_prompts=None, return_generator=False, **kwargs"
)
OPERATION = (
    "progress_interval=60, force=False, writer_batch_size=1000, save_num_proc=None, save_num_shards=None, "
    "background=False"
)
SHORT = {
    "…node": (
        "progress_interval=60, force=False, verbose=None, log_level=None, save_num_proc=None, save_num_shards=None, "
        "background=False"
    ),
    "…op_lazy": f"name=None, lazy=True, {OPERATION}",
    "…copy": OPERATION,
    "…op": f"name=None, {OPERATION}",
    "…splits": "train_size=None, validation_size=None, test_size=None, stratify_by_column=None",
    "…write": "writer_batch_size=1000, save_num_proc=None, save_num_shards=None",
    "…llm_run_adaptive": SAMPLED.format(adaptive=True, seed="seed=None, "),
    "…llm_run": SAMPLED.format(adaptive=False, seed="seed=None, "),
    "…batched_adaptive": RUN.format(adaptive=True, seed=""),
    "…batched": RUN.format(adaptive=False, seed=""),
    "…chat": "chat_prompt_template=AUTO, system_prompt=AUTO",
    "…prompt": "post_process=None, lazy=False, **kwargs",
    "…hf_trainer": (
        "revision=None, trust_remote_code=False, device=None, dtype=None, quantization_config=None, peft_config=None, "
        "distributed_config=AUTO, fsdp=AUTO, fsdp_config=AUTO, force=False, verbose=None, log_level=None, **kwargs"
    ),
    "…hf_train": (
        "truncate=True, epochs=3.0, batch_size=8, optim='adamw_torch', learning_rate=1e-3, weight_decay=0.01, "
        "lr_scheduler_type='linear', warmup_steps=0, neftune_noise_alpha=None"
    ),
}
"""What many signatures share; defaults that name a constant are compared by that name."""


@dataclass(frozen=True)
class Fact:
    room: str
    name: str
    signature: str | None
    registers: tuple[str, str] | None
    reason: str | None

    def __str__(self) -> str:
        return f"{self.room}.{self.name}{f' {self.registers[0]}' if self.registers else ''}"


def read_facts() -> Iterator[Fact]:
    room = ""
    for line in (ROOT / "tests/contracts/ancestor.txt").read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"\[(\w*)\]", line):
            room = header[1]
        elif line.strip():
            text, _, reason = line.partition(" | ")
            for short, whole in SHORT.items():
                text = text.replace(f"{short}_lazy", SHORT["…op_lazy"]) if short == "…op" else text
                text = re.sub(rf"{short}\b", lambda _, whole=whole: whole, text)
            if match := re.fullmatch(r"(\w+) (inputs|args|outputs): (.*)", text):
                yield Fact(room, match[1], None, (match[2], match[3]), reason or None)
            else:
                name, opened, rest = text.partition("(")
                yield Fact(room, name, f"({rest}" if opened else None, None, reason or None)


FACTS = list(read_facts())


def parameters_of(signature: str) -> list[tuple[str, str | None]]:
    """The parameters of a documented signature, stars included, with the source of their defaults."""
    arguments = ast.parse(f"def f{signature}: ...").body[0].args  # type: ignore[attr-defined]
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + [
        ast.unparse(one) for one in arguments.defaults
    ]
    found: list[tuple[str, str | None]] = [
        (arg.arg, value) for arg, value in zip(arguments.args, defaults, strict=True)
    ]
    if arguments.vararg:
        found.append((f"*{arguments.vararg.arg}", None))
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        found += [(arg.arg, None if value is None else ast.unparse(value)) for arg, value in pairs]
    return found + ([(f"**{arguments.kwarg.arg}", None)] if arguments.kwarg else [])


def thing_of(fact: Fact) -> Any:
    room = importlib.import_module(f"datadreamer_like.{fact.room}" if fact.room else "datadreamer_like")
    thing: Any = room
    for part in fact.name.split("."):
        if part in getattr(thing, "__dataclass_fields__", ()):
            return thing.__dataclass_fields__[part]
        thing = inspect.getattr_static(thing, part) if inspect.isclass(thing) else getattr(thing, part)
    return getattr(thing, "__func__", thing)


def differences(fact: Fact) -> list[str]:
    """What of a documented fact does not hold here."""
    try:
        thing = thing_of(fact)
    except AttributeError as error:
        return [f"missing: {error}"]
    if fact.registers is not None:
        return differences_of_step(thing, *fact.registers)
    if fact.signature is None:
        return []
    ours = list(inspect.signature(thing).parameters.values())
    if "." in fact.name and not isinstance(inspect.getattr_static(*owner_of(fact)), staticmethod):
        ours = ours[1:]
    return differences_of_signature(parameters_of(fact.signature), ours)


def owner_of(fact: Fact) -> tuple[Any, str]:
    cls, _, name = fact.name.rpartition(".")
    return thing_of(Fact(fact.room, cls, None, None, None)), name


def differences_of_signature(theirs: list[tuple[str, str | None]], ours: list[inspect.Parameter]) -> list[str]:
    found, keyword_only = [], False
    by_name = {parameter.name: parameter for parameter in ours}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in ours)
    for position, (name, default) in enumerate(theirs):
        if name.startswith("**"):
            found += [] if takes_any else ["takes no further keyword arguments"]
            continue
        if name.startswith("*"):
            keyword_only = True
            found += [] if ours[position].kind is inspect.Parameter.VAR_POSITIONAL else [f"takes no *{name}"]
            continue
        parameter = by_name.get(name)
        if parameter is None:
            found.append(f"{name} is missing")
        elif not keyword_only and (ours.index(parameter) != position or parameter.kind is parameter.KEYWORD_ONLY):
            found.append(f"{name} is not at position {position + 1}")
        elif default is None and parameter.default is not parameter.empty:
            pass  # required there, optional here
        elif not same_default(default, parameter.default):
            found.append(f"{name}={parameter.default!r} instead of {default}")
    return found


def same_default(theirs: str | None, ours: Any) -> bool:
    if theirs is None:
        return ours is inspect.Parameter.empty
    try:
        return bool(ast.literal_eval(theirs) == ours)
    except ValueError:  # a constant
        return repr(ours) == theirs


def differences_of_step(kind: type[Step], what: str, theirs: str) -> list[str]:
    specs = getattr(registered(kind), f"_{what.removesuffix('s')}_specs")
    found = []
    for name, default in parameters_of(f"({theirs})") if what == "args" else [(n, None) for n in theirs.split(", ")]:
        if name.startswith("*") and what == "args":
            found += [] if kind.takes_options else ["takes no further arguments"]
        elif name.removesuffix("columns") == "*":
            found += [] if "*" in specs else ["does not output all columns"]
        elif name not in specs:
            found.append(f"{name} is missing")
        elif default is not None and (specs[name].required or not same_default(default, specs[name].default)):
            found.append(f"{name}={specs[name].default!r} instead of {default}")
    if what == "outputs" and "*" not in theirs and list(specs) != theirs.split(", "):
        found.append(f"the columns are {list(specs)}")
    return found


@pytest.mark.parametrize("fact", FACTS, ids=str)
def test_what_the_ancestor_documents_holds_or_has_its_reason(fact: Fact) -> None:
    found = differences(fact)
    if fact.reason is None:
        assert found == []
    else:
        assert found, "holds now: remove its reason from the table"
        assert fact.reason in PAGE
