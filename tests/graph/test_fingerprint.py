"""Fingerprints: different content differs, equal content is equal, in this process and in any other."""

import collections
import collections.abc
import copy
import dataclasses
import datetime
import decimal
import enum
import functools
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import types
import typing
from contextvars import ContextVar
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
import pytest
import torch
from PIL import Image
from pydantic import Field

from datadreamer_like.errors import FingerprintError
from datadreamer_like.graph.fingerprint import ByContent, fingerprint

# Digests that results already on users' disks hang on: a change here reruns everything everywhere.
FROZEN = {
    "None": (None, "03207c79697da41c595ed3fbe09eb984"),
    "1": (1, "ec1316b1b6a717bb2cb3a02bf6eb9a3b"),
    "text 1": ("1", "58cec1023662f795fb7798dbddeccf8e"),
    "True": (True, "583ac6481654d3ee080665fcdf6055bc"),
    "1.0": (1.0, "24c6ce260f2a9ba8a1c76ce8f79ec243"),
    "bytes": (b"1", "7bc12cf779b48aee678f2f99d70cb194"),
    "list": ([1], "48b4c7fe33f32906d3031f5e8ffbda1d"),
    "tuple": ((1,), "c250385eaa89c26eb58432ce902443c7"),
    "set": ({1}, "2fc07f7867f862df4a88eac3518dbc35"),
    "dict": ({"a": 1}, "4d3ce2feb9b304a980d23e64d89cdee2"),
    "array": (np.arange(5, dtype=np.int64), "56ecd5af9974c175f4249a379f8c9a12"),
    "tensor": (torch.arange(5), "6481a83e6ecb88c1afb540360f272285"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_digests_of_earlier_versions_stay_valid(name):
    value, digest = FROZEN[name]
    assert fingerprint(value) == digest


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Holder:
    def __init__(self, value):
        self.value = value


def model(**fields):
    return pydantic.create_model("Model", __module__="__main__", __config__={"arbitrary_types_allowed": True}, **fields)


class Scaled(torch.nn.Module):
    """A module with a value that is neither a saved tensor nor shown in its `repr`."""

    def __init__(self, scale, buffer=0.0):
        super().__init__()
        self.scale = scale
        self.register_buffer("offset", torch.tensor(buffer), persistent=False)


def hooked(hook):
    module = torch.nn.Identity()
    module.register_forward_hook(hook)
    return module


def labels(feature, **options):
    rows = datasets.Dataset.from_dict({"c": [0, 1]}, features=datasets.Features({"c": feature}))
    return rows.with_format(**options) if options else rows


def annotated(cls, data, **attributes):
    value = cls(data) if cls is not OwnArray else np.array(data).view(cls)
    for name, item in attributes.items():
        setattr(value, name, item)
    return value


class OwnArray(np.ndarray):
    pass


class OwnFrame(pd.DataFrame):
    _metadata = ("unit",)


NAMES = datasets.ClassLabel(names=["neg", "pos"])
NOT_IN_THE_ROWS = [
    (labels(NAMES), labels(datasets.ClassLabel(names=["pos", "neg"]))),
    (labels(NAMES), labels(datasets.Value("int64"))),
    (labels(NAMES), labels(NAMES, type="numpy")),
    (datasets.DatasetDict(a=labels(NAMES)), datasets.DatasetDict(a=labels(datasets.ClassLabel(names=["a", "b"])))),
    (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(1, 3))),
    (pd.DataFrame({"a": [1]}, index=[1]), pd.DataFrame({"a": [1]}, index=["1"])),
    (pd.DataFrame({1: [1]}), pd.DataFrame({"1": [1]})),
    (pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])), pd.DataFrame({"('a', 'b')": [1]})),
    (pd.DataFrame([[1, 2]], columns=["a", "a"]), pd.DataFrame([[1, 3]], columns=["a", "a"])),
    (pd.DataFrame({"a": [1]}).rename_axis(columns="x"), pd.DataFrame({"a": [1]})),
    (pd.DataFrame({"a": [1]}).rename_axis(index="x"), pd.DataFrame({"a": [1]})),
    (pd.DataFrame({"a": [1, "x"]}), pd.DataFrame({"a": [2, "x"]})),
    (pd.DataFrame({"a": [{1, 2}]}), pd.DataFrame({"a": [{1, 3}]})),
    (pd.DataFrame({"a": ["x", None]}, dtype=object), pd.DataFrame({"a": ["x", float("nan")]}, dtype=object)),
    (pd.DataFrame({"a": [True, 1]}, dtype=object), pd.DataFrame({"a": [1, 1]}, dtype=object)),
    (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": pd.array([1], dtype="Int64")})),
    (pd.Series([1], name="a"), pd.DataFrame({"a": [1]})),
    (pd.Series([1, 2]), pd.Series([1, 2], index=pd.RangeIndex(1, 3))),
    (
        annotated(pd.DataFrame, {"a": [1]}, attrs={"unit": "m"}),
        annotated(pd.DataFrame, {"a": [1]}, attrs={"unit": "s"}),
    ),
    (annotated(OwnFrame, {"a": [1]}, unit="m"), annotated(OwnFrame, {"a": [1]}, unit="s")),
    (annotated(OwnArray, [1], unit="m"), annotated(OwnArray, [1], unit="s")),
    (np.array([1]), np.array([1]).view(OwnArray)),
    (pa.table({"a": [1]}).replace_schema_metadata({"unit": "m"}), pa.table({"a": [1]})),
    (Scaled(1), Scaled(2)),
    (Scaled(1, 0.0), Scaled(1, 1.0)),
    (torch.nn.Sequential(Scaled(1)), torch.nn.Sequential(Scaled(2))),
    (Scaled(1).train(), Scaled(1).eval()),
    (hooked(lambda *_: 1), hooked(lambda *_: 2)),
    (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()),
    (torch.tensor([1j]).conj(), torch.tensor([1j])),
    (torch.tensor([1j]).conj().imag, torch.tensor([1j]).imag),
]


@pytest.mark.parametrize(("a", "b"), NOT_IN_THE_ROWS)
def test_what_libraries_keep_next_to_rows_and_weights_counts(a, b):
    again = a if isinstance(a, OwnArray | OwnFrame) else copy.deepcopy(a)  # a copy of these loses the attributes
    assert fingerprint(a) == fingerprint(again) != fingerprint(b)


DIFFERENT = [
    (0, False), (1, 1.0), ("a", b"a"), ([], ()), ({}, set()), ("", None), ([1, [2]], [[1], 2]), (["ab"], ["a", "b"]),
    ({"a": 1}, {"a": "1"}), (0.1 + 0.2, 0.3), (10**30, 10**30 + 1), (Colour.RED, Colour.BLUE), (Point(1), Point(1, 1)),
    (Holder(1), Holder(2)), (Path("a"), "a"), (re.compile("a"), re.compile("a", re.I)), (range(3), range(4)),
    (np.zeros(3, np.float32), np.zeros(3, np.float64)), (np.zeros((2, 3)), np.zeros((3, 2))),
    (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)), (torch.float32, torch.float16),
    (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})), (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})),
    (pa.table({"a": [1, None]}), pa.table({"a": [1, 0]})), (pa.table({"a": ["", "ab"]}), pa.table({"a": ["a", "b"]})),
    (datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)), (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    (functools.partial(max, 1), functools.partial(max, 2)), (len, max), (str.upper, str.lower),
    (collections.Counter("aab"), collections.Counter("abb")), (np.float32(1), np.float64(1)),
    (["a", "bc"], ["ab", "c"]), ([1, 2], [2, 1]), (int | None, str | None), (model(n=(int, 1)), model(n=(int, 2))),
    (model(n=(int, Field(ge=1))), model(n=(int, Field(ge=2)))), (model(n=(int | None, 1)), model(n=(int | str, 1))),
    (model(n=(Point, None)), model(n=(Holder | None, None))),
    (Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2))),
    (Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2))), (Image.new("L", (2, 2)), Image.new("P", (2, 2))),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_values_differ(a, b):
    assert fingerprint(a) != fingerprint(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"a", "b", "c"}, {"c", "b", "a"}),
        (Point(1, 2), Point(1, 2)),
        (Holder([1, {"k": 2.5}]), Holder([1, {"k": 2.5}])),
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(10)[::2], np.array([0, 2, 4, 6, 8])),
        (torch.arange(6).reshape(2, 3).T, torch.arange(6).reshape(2, 3).T.contiguous()),
        (logging.getLogger("x"), logging.getLogger("x")),
        (threading.Lock(), threading.Lock()),
        (float("nan"), float("nan")),
        (Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "red").copy()),
    ],
)
def test_equal_content_is_equal(a, b):
    assert fingerprint(a) == fingerprint(b)


class Tone(enum.StrEnum):
    HIGH = "high"
    LOW = "low"


class Right(enum.IntFlag):
    READ = 1
    WRITE = 2


class Name(str):
    UNKNOWN: "Name"


Name.UNKNOWN = Name("?")
Many = enum.Enum("Many", [f"M{number}" for number in range(100)])


def priced(price):
    class Fruit(enum.Enum):
        APPLE = ("apple", price)

        def __new__(cls, value, price):
            made = object.__new__(cls)
            made._value_, made.price = value, price
            return made

    return Fruit


@pytest.mark.parametrize("value", [Tone.HIGH, Right.READ | Right.WRITE, Right(0), Name.UNKNOWN, Many.M7])
def test_a_class_that_holds_its_own_values_is_told_in_time(value):
    def use():
        return value

    kind = type(value)
    assert len({fingerprint(item) for item in (value, kind, use, lambda: kind, [value, kind])}) == 5


def test_members_are_told_by_name_value_and_attributes():
    values = [*Tone, *Right, Right(0), Right(3), priced(1).APPLE, priced(2).APPLE]
    assert len(set(map(fingerprint, values))) == len(values)
    assert fingerprint(priced(1)) == fingerprint(priced(1)) != fingerprint(priced(2))


def test_numpy_dates_and_time_differences_are_told_by_value_unit_and_kind():
    days = ["2024-01-02", "2024-01-03"]
    arrays = [
        np.array(days, dtype="datetime64[D]"),
        np.array(days, dtype="datetime64[ns]"),
        np.array(days[::-1], dtype="datetime64[ns]"),
        np.array([days[0], "NaT"], dtype="datetime64[ns]"),
        np.array([days], dtype="datetime64[ns]"),
        np.array([], dtype="datetime64[ns]"),
        np.array(days[0], dtype="datetime64[ns]"),
        np.array([1, 2], dtype="timedelta64[D]"),
        np.array([1, 2], dtype="timedelta64[s]"),
        np.array([(1, days[0])], dtype=[("n", "i8"), ("day", "datetime64[D]")]),
        np.array(days, dtype="datetime64[D]").astype(object),
        pd.Series(pd.to_datetime(days)),
        pd.Index(pd.to_datetime(days)),
    ]
    scalars = [np.datetime64(days[0], unit) for unit in ("D", "s", "ns")]
    scalars += [np.timedelta64(1, "D"), np.timedelta64(1, "s"), np.datetime64("NaT"), np.timedelta64("NaT")]
    assert len({fingerprint(value) for value in arrays + scalars}) == len(arrays + scalars)
    every_second = np.array([days[0], days[0], days[1]], dtype="datetime64[D]")[::2]
    assert fingerprint(every_second) == fingerprint(arrays[0])


def test_datasets_are_told_by_content_not_by_how_they_were_cut():
    rows = datasets.Dataset.from_dict({"a": list(range(25_000)), "b": [f"text {i}" for i in range(25_000)]})
    cut = datasets.concatenate_datasets([rows.select(range(7)), rows.select(range(7, 25_000))])
    indexed = rows.select(list(range(25_000)))
    assert fingerprint(cut) == fingerprint(rows) == fingerprint(indexed)
    changed = rows.map(lambda row: {"b": "other"} if row["a"] == 24_999 else row)
    assert fingerprint(changed) != fingerprint(rows)
    assert fingerprint(rows.select(range(24_999))) != fingerprint(rows)


def test_functions_are_told_by_code_closure_defaults_and_globals(tmp_path):
    def digest(source, **namespace):
        names = {"__name__": "script", **namespace}
        exec(textwrap.dedent(source), names)
        return fingerprint(names["f"])

    base = digest("def f(x): return x + 1")
    assert digest("def f(x):\n    'Says what.'\n    # a comment\n    return x + 1") == base
    assert digest("def f(x): return x + 2") != base
    assert digest("def f(x, k=1): return x + k") != digest("def f(x, k=2): return x + k")
    assert digest("def f(x, *, k=1): return x + k") != digest("def f(x, *, k=2): return x + k")
    assert digest("def f(x): return x + K", K=1) != digest("def f(x): return x + K", K=2)
    assert digest("def g(x): return x\ndef f(x): return g(x)") != digest("def g(x): return -x\ndef f(x): return g(x)")
    assert digest("def f(x): return [y + K for y in x]", K=1) != digest("def f(x): return [y + K for y in x]", K=2)
    assert digest("def f(n): return n and f(n - 1)") == digest("def f(n): return n and f(n - 1)")

    def closing_over(value):
        return lambda x: x + value

    assert fingerprint(closing_over(1)) == fingerprint(closing_over(1))
    assert fingerprint(closing_over(1)) != fingerprint(closing_over(2))


@pytest.mark.parametrize(
    ("source", "decides"),
    [
        ("def f(row):\n  'TEXT'\n  return f.__doc__ + row", True),
        ("def g():\n  'TEXT'\ndef f(row): return g.__doc__", True),
        ("class K:\n  'TEXT'\ndef f(row): return K.__doc__", True),
        ("class K:\n  'TEXT'\n  def say(self): return self.__doc__\nk = K()\ndef f(row): return k.say()", True),
        ("import inspect\nclass K:\n  'TEXT'\ndef f(row): return inspect.getdoc(K)", True),
        ("class K:\n  a: 'TEXT'\ndef f(row): return K.__annotations__", True),
        ("def d(g): return lambda row: g.__doc__.format(row)\n@d\ndef f(row):\n  'TEXT'", True),
        ("def f(row):\n  'TEXT'\n  return row", False),
        ("class K:\n  'TEXT'\n  def say(self): return 1\ndef f(row): return K().say()", False),
        ("def f(row):\n  class K:\n    a: 'TEXT'\n  return K", True),  # made in the body, by its code
    ],
)
def test_docstrings_and_annotations_decide_where_the_code_reads_them(source, decides):
    def digest(text):
        namespace = {"__name__": "script"}
        exec(source.replace("TEXT", text), namespace)
        return fingerprint(namespace["f"])

    assert digest("one") == digest("one")
    assert (digest("one") != digest("two")) is decides


def test_cached_functions_and_functions_that_a_library_made_are_told_by_what_they_hold():
    def digest(source, name="script"):
        names = {"__name__": name, "functools": functools}
        exec(textwrap.dedent(source), names)
        return fingerprint(names["f"])

    plus = "@functools.lru_cache\ndef g(x): return x + {}\ndef f(x): return g(x)"
    assert digest(plus.format(1)) == digest(plus.format(1)) != digest(plus.format(2))
    made = "def make(n):\n    return lambda x: x + n\nf = make({})"
    assert digest(made.format(1), "statistics") == digest(made.format(1), "statistics")
    assert digest(made.format(1), "statistics") != digest(made.format(2), "statistics")


def test_functions_that_refer_to_each_other_in_every_way_are_told_in_a_moment():
    def digest(last):
        names = [f"f{index}" for index in range(40)]
        calls = {name: " + ".join(f"{other}(x)" for other in names if other != name) for name in names}
        source = "\n".join(f"def {name}(x): return {calls[name]}" for name in names)
        namespace = {"__name__": "script"}
        exec(f"{source} + {last}", namespace)
        return fingerprint(namespace["f0"])

    assert digest(1) == digest(1) != digest(2)


class Fields(dict):
    def __missing__(self, key):
        return "none"


class Words(list):
    pass


class Name(str):
    __slots__ = ("language",)


def with_attribute(value, **attributes):
    for name, item in attributes.items():
        setattr(value, name, item)
    return value


Pair = collections.namedtuple("Pair", "a b")
CONTAINERS = {
    "dict": {"a": 1, "b": 2},
    "dict in another order": {"b": 2, "a": 1},
    "OrderedDict": collections.OrderedDict(a=1, b=2),
    "OrderedDict in another order": collections.OrderedDict(b=2, a=1),
    "Counter": collections.Counter(a=1, b=2),
    "defaultdict of int": collections.defaultdict(int, a=1, b=2),
    "defaultdict of list": collections.defaultdict(list, a=1, b=2),
    "defaultdict of 1": collections.defaultdict(lambda: 1, a=1, b=2),
    "defaultdict of 9": collections.defaultdict(lambda: 9, a=1, b=2),
    "ChainMap": collections.ChainMap({"b": 2, "a": 1}),
    "ChainMap of two": collections.ChainMap({"b": 2, "a": 1}, {"a": 3}),
    "UserDict": collections.UserDict(a=1, b=2),
    "own dict": Fields(a=1, b=2),
    "own dict with an attribute": with_attribute(Fields(a=1, b=2), default="x"),
    "list": ["a", "b"],
    "own list": Words(["a", "b"]),
    "own list with an attribute": with_attribute(Words(["a", "b"]), language="en"),
    "UserList": collections.UserList(["a", "b"]),
    "tuple": ("a", "b"),
    "named tuple": Pair("a", "b"),
    "deque": collections.deque(["a", "b"]),
    "deque in another order": collections.deque(["b", "a"]),
    "deque of at most two": collections.deque(["a", "b"], maxlen=2),
    "set": {"a", "b"},
    "frozenset": frozenset({"a", "b"}),
    "bytes": b"ab",
    "bytearray": bytearray(b"ab"),
    "str": "ab",
    "own str": with_attribute(Name("ab"), language="en"),
    "own str with another attribute": with_attribute(Name("ab"), language="de"),
}


def test_order_class_state_and_default_of_containers_decide():
    digests = {name: fingerprint(value) for name, value in CONTAINERS.items()}
    assert len(set(digests.values())) == len(digests)
    assert {name: fingerprint(copy.deepcopy(value)) for name, value in CONTAINERS.items()} == digests

    def of(table):
        return lambda row: [row[name] for name in table]

    assert len({fingerprint(of(value)) for value in CONTAINERS.values()}) == len(digests)
    assert fingerprint({3, 1, 2}) == fingerprint({2, 3, 1})
    assert fingerprint(types.MappingProxyType({"a": 1})) == fingerprint({"a": 1})


T = typing.TypeVar("T")


class Movie(typing.TypedDict):
    title: str


TYPES = [
    int | str, str | int | None, int | None, int | bytes, list[int], dict[str, int], list[list[int]],
    typing.Literal["a", "b"], typing.Literal["a"], typing.Annotated[int, "x"], typing.Annotated[int, "y"], typing.Any,
    typing.Callable[[int], str], typing.Callable[[str], str], collections.abc.Sequence[int], typing.NewType("Id", int),
    T, typing.TypeVar("U", bound=int), typing.ForwardRef("int"), typing.ClassVar[int], type[int], Movie,
    typing.NoReturn, typing.Union.__getitem__((int, float)),
    tuple[int, ...], list[Movie], Movie | None,
]  # fmt: skip


def test_types_of_every_form_may_be_globals_and_differ():
    def of(kind):
        return lambda row: isinstance(row, kind)

    assert len({fingerprint(of(kind)) for kind in TYPES}) == len(TYPES)
    assert fingerprint(of(int | str)) == fingerprint(of(int | str))


def test_values_that_an_object_computes_from_others_and_keeps_decide_nothing():
    class Text:
        def __init__(self, text):
            self.text = text

        @functools.cached_property
        def words(self):
            return self.text.split()

    text = Text("a b")
    before = fingerprint(text)
    assert text.words == ["a", "b"]
    assert fingerprint(text) == before != fingerprint(Text("a c"))


def test_two_lambdas_on_one_line_differ():
    a, b = (lambda x: x + 1), (lambda x: x + 2)
    assert fingerprint(a) != fingerprint(b)


def test_methods_depend_on_their_object_and_classes_on_their_code():
    assert fingerprint(Holder(1).__init__) != fingerprint(Holder(2).__init__)

    def make(value):
        class Local:
            limit = value

            def run(self):
                return self.limit

        return Local

    assert fingerprint(make(1)) == fingerprint(make(1))
    assert fingerprint(make(1)) != fingerprint(make(2))


def test_cycles_end():
    a = [1]
    a.append(a)
    b = [1]
    b.append(b)
    assert fingerprint(a) == fingerprint(b)


@pytest.mark.parametrize("make", [lambda: (i for i in range(3)), lambda: iter([1]), object])
def test_what_has_no_content_is_refused_with_the_place_and_the_way_out(make):
    with pytest.raises(FingerprintError, match=r"argument \"llm\"\['client'\]\[0\]\.value .*__fingerprint__"):
        fingerprint({"client": [Holder(make())]}, 'argument "llm"')


def test_an_open_file_is_refused(tmp_path):
    with (tmp_path / "x").open("w") as stream, pytest.raises(FingerprintError, match="cannot be fingerprinted"):
        fingerprint(stream)


def test_an_object_may_say_itself_what_decides_it():
    class Client:
        def __init__(self, model):
            self.model = model
            self.connection = object()

        def __fingerprint__(self):
            return {"model": self.model}

    assert fingerprint(Client("a")) == fingerprint(Client("a"))
    assert fingerprint(Client("a")) != fingerprint(Client("b"))


def test_files_count_by_content(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("same")
    two.write_text("same")
    assert fingerprint(ByContent(one)) == fingerprint(ByContent(two))
    two.write_text("other")
    assert fingerprint(ByContent(one)) != fingerprint(ByContent(two))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = fingerprint(ByContent(tmp_path / "a"))
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert fingerprint(ByContent(tmp_path / "a")) != before


def test_another_process_gives_the_same_fingerprints(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import re
            from pydantic import BaseModel, Field, field_validator
            from datadreamer_like.graph.fingerprint import fingerprint
            LIMIT = {"a", "b", "c", "d"}
            class Thing:
                def __init__(self): self.names = {"x", "y", "z"}
                def run(self, text): return re.sub("a", "b", text) in LIMIT
            def one(x): return two(x) in LIMIT
            def two(x): return x and one(x[1:])
            CALLS = {one, two, len}
            def all_of(x): return [call(x) for call in CALLS]
            class Inner(BaseModel):
                name: str | None = Field(None, alias="n", max_length=3)
            class Model(BaseModel):
                inner: list[Inner] | int
                score: float = Field(ge=0)
                @field_validator("score")
                def check(cls, value): return value
            print(fingerprint([Model, Thing(), Thing.run, lambda t: t in LIMIT, {"k": {1, 2, 3}}, all_of]))
            """
        )
    )
    runs = [("1", []), ("2", []), ("3", ["-m", "cProfile", "-o", str(tmp_path / "profile")])]
    seen = set()
    for seed, how in runs:
        command = [sys.executable, *how, str(script)]
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        seen.add(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(seen) == 1


def test_the_value_of_a_context_variable_decides():
    english, german = (ContextVar("language", default=name) for name in ("en", "de"))
    assert fingerprint(english) != fingerprint(german)
    english.set("de")
    assert fingerprint(english) == fingerprint(german)
    held = [ContextVar("held", default=value) for value in (threading.Lock(), iter([1]))]
    assert all(fingerprint(variable) == fingerprint(variable) for variable in (*held, ContextVar("empty")))


def test_the_function_of_a_static_method_decides():
    assert fingerprint(staticmethod(lambda: 1)) != fingerprint(staticmethod(lambda: 2))


def test_integers_of_more_digits_than_python_converts_to_text():
    assert fingerprint(10**5000) == fingerprint(10**5000) != fingerprint(10**5000 + 1)
