"""Functions that change what they refer to: the finished script does no work, and what the script changes is seen."""

import logging
import textwrap

import pytest

from datadreamer_like import DataDreamer

TWO_STEPS = """
first = DataSource("Rows", data={"t": [" a", "b "]}).map(clean, name="First", lazy=False)
second = first.map(CLEAN2, name="Second", lazy=False)
third = second.map(lambda row: {"t": row["t"] + "."}, name="Third", lazy=False)
"""

# Functions that count, keep or collect in every kind of variable; `other` is one more function with the same variable.
CHANGING = {
    "a Counter": "seen = Counter()\ndef clean(row):\n    seen[row['t']] += 1\n    return row",
    "a list of rejects": "bad = []\ndef clean(row):\n    bad.append(row['t'])\n    return row",
    "an itertools.count": (
        "import itertools\nids = itertools.count()\ndef clean(row):\n    return {'t': row['t'] + str(next(ids))}"
    ),
    "a set": "seen = set()\ndef clean(row):\n    seen.add(row['t'])\n    return row",
    "a cache": "cache = {}\ndef clean(row):\n    cache.setdefault(row['t'], len(cache))\n    return row",
    "a cache of another function": (
        "cache = {}\ndef keep(t):\n    cache[t] = 1\ndef clean(row):\n    keep(row['t'])\n    return row"
    ),
    "a global number": "n = 0\ndef clean(row):\n    global n\n    n += 1\n    return row",
    "a global text": "last = ''\ndef clean(row):\n    global last\n    last = row['t']\n    return row",
    "a closure's number": (
        "def make():\n    n = 0\n    def clean(row):\n        nonlocal n\n        n += 1\n"
        "        return row\n    return clean\nclean = make()"
    ),
    "a closure's list": (
        "def make():\n    bad = []\n    def clean(row):\n        bad.append(row)\n        return row\n"
        "    return clean\nclean = make()"
    ),
    "a default argument": "def clean(row, seen=[]):\n    seen.append(row['t'])\n    return row",
    "an attribute of the function": "def clean(row):\n    clean.n += 1\n    return row\nclean.n = 0",
    "an attribute that the function makes": (
        "def clean(row):\n    clean.n = getattr(clean, 'n', 0) + 1\n    return row"
    ),
    "a list of objects that make such objects": (
        "made = []\nclass Maker:\n    def make(self): made.append(Maker())\nmaker = Maker()\n"
        "def clean(row):\n    maker.make()\n    return row"
    ),
    "numpy's random generator": (
        "import numpy as np\ndice = np.random.default_rng(0)\ndef clean(row):\n"
        "    return {'t': row['t'] + str(dice.random())}"
    ),
    "an attribute of a class": "class Count:\n    n = 0\ndef clean(row):\n    Count.n += 1\n    return row",
    "a list of a class": "class Count:\n    rows = []\ndef clean(row):\n    Count.rows.append(row)\n    return row",
    "an object": (
        "class Count:\n    def __init__(self): self.n = 0\ncount = Count()\ndef clean(row):\n"
        "    count.n += 1\n    return row"
    ),
    "a callable object": (
        "class Clean:\n    def __init__(self): self.n = 0\n    def __call__(self, row):\n"
        "        self.n += 1\n        return row\nclean = Clean()"
    ),
    "a method": (
        "class Clean:\n    def __init__(self): self.n = 0\n    def run(self, row):\n        self.n += 1\n"
        "        return row\nclean = Clean().run"
    ),
    "a numpy array": "import numpy as np\ncounts = np.zeros(3)\ndef clean(row):\n    counts[0] += 1\n    return row",
    "a random generator": (
        "import random\ndice = random.Random(0)\ndef clean(row):\n"
        "    return {'t': row['t'] + str(dice.random())}"
    ),
    "a list in a list": (
        "state = [[], {'n': 0}]\ndef clean(row):\n    state[1]['n'] += 1\n    state[0].append(row['t'])\n"
        "    return row"
    ),
    "a partial": (
        "import functools\nseen = []\n"
        "clean = functools.partial(lambda seen, row: seen.append(row['t']) or row, seen)"
    ),
}  # fmt: skip


def run(source, folder, caplog):
    """Runs a script of its own names; returns the names of the steps that did work."""
    caplog.clear()
    from collections import Counter

    from datadreamer_like.steps import DataSource

    names = {"__name__": "__main__", "Counter": Counter, "DataSource": DataSource}
    with DataDreamer(folder), caplog.at_level(logging.INFO, "datadreamer_like"):
        exec(textwrap.dedent(source), names)
    return [text.split(":")[0] for record in caplog.records if "done" in (text := record.getMessage())]


@pytest.mark.parametrize("other", [False, True], ids=["one function", "two functions"])
@pytest.mark.parametrize("kind", CHANGING)
def test_a_finished_script_whose_functions_change_their_variables_does_no_work(tmp_path, caplog, kind, other):
    script = CHANGING[kind] + "\nplain = clean\ndef again(row): return plain(row)\n"
    script += TWO_STEPS.replace("CLEAN2", "again" if other else "clean")
    assert run(script, tmp_path, caplog) == ["Rows", "First", "Second", "Third"]
    for _ in range(2):
        assert run(script, tmp_path, caplog) == []


@pytest.mark.parametrize("lazy", [True, False])
def test_lazy_functions_that_a_later_step_runs_count_too(tmp_path, caplog, lazy):
    script = f"""
        seen = Counter()
        def clean(row):
            seen[row["t"]] += 1
            return row
        rows = DataSource("Rows", data={{"t": ["a", "b"]}})
        first = rows.map(clean, name="First", lazy={lazy}).map(clean, name="Second", lazy=True).save(name="Saved")
        first.filter(lambda row: bool(clean(row)), name="Third", lazy=False)
    """
    assert run(script, tmp_path, caplog)[-2:] == ["Saved", "Third"]
    assert run(script, tmp_path, caplog) == []


@pytest.mark.parametrize(
    ("start", "change"),
    [
        ("fields = ['t']", "fields.append('x')"),
        ("fields = {'t': 1}", "fields['t'] = 2"),
        ("fields = Counter()", "fields.clear()\nfields['x'] = 1"),
        ("fields = 1", "fields = 2"),
        ("class C: pass\nfields = C()\nfields.a = 1", "fields.a = 2"),
    ],
)
@pytest.mark.parametrize("counts", [False, True])
def test_what_the_script_itself_changes_between_two_steps_is_seen(tmp_path, caplog, start, change, counts):
    script = f"""
seen = Counter()
{start}
def show(row):
    {"seen[row['t']] += 1" if counts else "pass"}
    return {{"t": str(vars(fields) if hasattr(fields, "a") else fields)}}
rows = DataSource("Rows", data={{"t": ["a", "b"]}})
texts = list(rows.map(show, name="First", lazy=False).output["t"])
CHANGE
assert list(rows.map(show, name="Second", lazy=False).output["t"]) != texts
"""
    assert run(script.replace("CHANGE", change), tmp_path, caplog) == ["Rows", "First", "Second"]
    assert run(script.replace("CHANGE", change), tmp_path, caplog) == []
    with pytest.raises(AssertionError):  # "Second" is not served from the run with the change
        run(script.replace("CHANGE", ""), tmp_path, caplog)


@pytest.mark.parametrize(
    "change", ["type(self).runs += 1", "type(self).seen.append(1)", "self.args['rejects'].append(1)"]
)
def test_steps_that_change_their_class_or_an_argument_do_no_work_again(tmp_path, caplog, change):
    script = f"""
        from datadreamer_like.steps import Step
        rejects = []
        class Mine(Step):
            runs = 0
            seen = []
            def setup(self):
                self.register_arg("rejects")
                self.register_output("t")
            def run(self):
                {change}
                return ["a"]
        Mine("First", args={{"rejects": rejects}})
        Mine("Second", args={{"rejects": rejects}})
    """
    assert run(script, tmp_path, caplog) == ["First", "Second"]
    assert run(script, tmp_path, caplog) == []
