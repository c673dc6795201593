"""All of the user's code and values that a function can reach decide, however they are imported."""

import os
import subprocess
import sys
import textwrap

import pytest

# A function `f`, and the file in which FACTOR changes; "keep" where its value is not reached.
FILES = {
    "settings.py": "FACTOR = {factor}\nOTHER = 1\ndef times(x): return x * FACTOR\n",
    "helper.py": "from settings import FACTOR\ndef scaled(x): return x * FACTOR\n",
    "deep.py": "import helper\ndef scaled(x): return helper.scaled(x)\n",
    "late.py": "def scaled(x):\n    from settings import FACTOR\n    return x * FACTOR\n",
    "package/__init__.py": "from . import inner\nfrom .inner import LIMIT\n",
    "package/inner.py": "from settings import FACTOR as LIMIT\ndef scaled(x): return x * LIMIT\n",
    "package/lazy.py": "from ..settings_of import x\n",
    "classes.py": (
        "import dataclasses, enum\nfrom settings import FACTOR\n"
        "class Options:\n    factor = FACTOR\n    def __init__(self): self.kind = 1\n"
        "class Kind(enum.Enum):\n    A = FACTOR\n    B = [FACTOR]\n"
        "@dataclasses.dataclass\nclass Data:\n    x: int = FACTOR\n"
        "    y: list = dataclasses.field(default_factory=lambda: [FACTOR])\n"
        "class Base(type):\n    def __call__(cls): return FACTOR\n"
        "class Made(metaclass=Base): pass\n"
    ),
}  # fmt: skip

SEEN = {
    "a module's value": "import settings\ndef f(x): return settings.FACTOR",
    "globals()": "from settings import FACTOR\ndef f(x): return globals()['FACTOR']",
    "eval": "from settings import FACTOR\ndef f(x): return eval('FACTOR * x')",
    "exec": "from settings import FACTOR\ndef f(x): exec('print(FACTOR)')",
    "eval in a helper": "from settings import FACTOR\ndef g(): return eval('FACTOR')\ndef f(x): return g()",
    "a registered function of singledispatch": (
        "import functools\nfrom settings import FACTOR\n@functools.singledispatch\ndef g(x): return 0\n"
        "@g.register\ndef _(x: int): return FACTOR\ndef f(x): return g(x)"
    ),
    "singledispatch itself": (
        "import functools\nfrom settings import FACTOR\n@functools.singledispatch\ndef f(x): return FACTOR\nf('a')"
    ),
    "a singledispatch that calls itself": (
        "import functools\nfrom settings import FACTOR\n@functools.singledispatch\ndef g(x): return FACTOR\n"
        "@g.register\ndef _(x: list): return [g(y) for y in x]\ndef f(x): return g(x)"
    ),
    "singledispatchmethod": (
        "import functools\nfrom settings import FACTOR\nclass A:\n    @functools.singledispatchmethod\n"
        "    def g(self, x): return 0\n    @g.register\n    def _(self, x: int): return FACTOR\n"
        "def f(x): return A().g(x)"
    ),
    "a count": "import itertools\nfrom settings import FACTOR\nC = itertools.count(FACTOR)\ndef f(x): return next(C)",
    "a module's function": "import settings\ndef f(x): return settings.times(x)",
    "a value that a helper imports by name": "import helper\ndef f(x): return helper.scaled(x)",
    "helpers of helpers": "import deep\ndef f(x): return deep.scaled(x)",
    "a module behind a module": "import deep\ndef f(x): return deep.helper.FACTOR",
    "an import in a helper": "import late\ndef f(x): return late.scaled(x)",
    "a module of a package": "import package\ndef f(x): return package.inner.scaled(x)",
    "a value of a package": "import package\ndef f(x): return package.LIMIT",
    "a module by another name": "import package.inner as p\ndef f(x): return p.LIMIT",
    "a name by another name": "from settings import FACTOR as z\ndef f(x): return z",
    "a module that is imported inside": "def f(x):\n    import settings\n    return settings.FACTOR",
    "a module that is imported inside by another name": "def f(x):\n    import package.inner as p\n    return p.LIMIT",
    "a package that is imported inside": "def f(x):\n    import package.inner\n    return package.inner.scaled(x)",
    "a name that is imported inside": "def f(x):\n    from settings import FACTOR\n    return FACTOR",
    "a name that is imported inside by another name": "def f(x):\n    from settings import times as t\n    return t(x)",
    "a module that is imported from a package inside": (
        "def f(x):\n"
        "    from package import inner\n    return inner.LIMIT"
    ),
    "all names that are imported inside, of a class": (
        "def f(x):\n"
        "    class A:\n        from settings import FACTOR\n    return A"
    ),
    "importlib": "import importlib\ndef f(x): return importlib.import_module('settings').FACTOR",
    "importlib with a global": (
        "import importlib\n"
        "NAME = 'settings'\ndef f(x): return importlib.import_module(NAME).FACTOR"
    ),
    "__import__": "def f(x): return __import__('helper').scaled(x)",
    "importlib with a variable": (
        "import importlib\n"
        "def f(x):\n    name = 'helper'\n    return importlib.import_module(name).scaled(x)"
    ),
    "getattr": "import helper\ndef f(x): return getattr(helper, 'FAC' + 'TOR')",
    "a module in a container": "import helper\nALL = [helper]\ndef f(x): return ALL[0].scaled(x)",
    "a module as an argument's default": "import helper\ndef f(x, h=helper): return h.scaled(x)",
    "a nested function": "import helper\ndef f(x): return [helper.scaled(y) for y in (lambda: [helper.FACTOR])()]",
    "a closure": "def make():\n    import helper\n    return lambda x: helper.scaled(x)\nf = make()",
    "an attribute of a class": "import classes\ndef f(x): return classes.Options().factor",
    "an attribute of an object": "import classes\nO = classes.Options()\ndef f(x): return O.factor",
    "an enumeration": "import classes\ndef f(x): return classes.Kind.A.value",
    "an enumeration of lists": "import classes\ndef f(x): return classes.Kind.B.value",
    "a dataclass": "import classes\ndef f(x): return classes.Data().x",
    "a metaclass": "import classes\ndef f(x): return classes.Made()",
    "a default argument": "from settings import FACTOR\ndef f(x, k=FACTOR): return k",
    "a keyword-only default": "from settings import FACTOR\ndef f(x, *, k=FACTOR): return k",
    "a partial": "import functools, settings\nf = functools.partial(lambda k, x: k, settings.FACTOR)",
    "a partial of a helper": "import functools, helper\nf = functools.partial(helper.scaled)",
    "lambdas in a list": "import helper\nALL = [lambda x: 1, lambda x: helper.scaled(x)]\ndef f(x): return ALL[1](x)",
    "lambdas in a dict": (
        "import helper\n"
        "ALL = {'a': {'b': lambda x: helper.scaled(x)}}\ndef f(x): return ALL['a']['b'](x)"
    ),
    "a decorator": (
        "import functools, helper\ndef d(g):\n    @functools.wraps(g)\n"
        "    def w(x): return helper.scaled(g(x))\n    return w\n@d\ndef f(x): return x"
    ),
    "an attribute of a function": "import settings\ndef f(x): return f.k\nf.k = settings.FACTOR",
    "a value that the script sets": (
        "import settings\n"
        "import helper\nhelper.LATE = settings.FACTOR\ndef f(x): return helper.LATE"
    ),
    "a value that the script sets, of a module as a whole": (
        "import settings\nimport helper\nhelper.LATE = [settings.FACTOR]\n"
        "def f(x): return getattr(helper, 'LATE')"
    ),
    "an object with a call": "import helper\nclass C:\n    def __call__(self, x): return helper.scaled(x)\nf = C()",
    "a method": "import helper\nclass C:\n    def g(self, x): return helper.scaled(x)\nf = C().g",
    "a property": (
        "import helper\nclass C:\n    @property\n    def g(self): return helper.FACTOR\n"
        "def f(x): return C().g"
    ),
    "a cached function": (
        "import functools, helper\n"
        "@functools.cache\ndef g(x): return helper.scaled(x)\ndef f(x): return g(x)"
    ),
    "a generator": "import helper\ndef f(x): return list(helper.scaled(y) for y in [x])",
    "a coroutine": "import helper\nasync def f(x): return helper.scaled(x)",
}  # fmt: skip

NOT_SEEN = {
    "another value of the module": "import settings\ndef f(x): return settings.OTHER",
    "another name of the module inside": "def f(x):\n    from settings import OTHER\n    return OTHER",
    "another attribute of a module inside": "def f(x):\n    import settings\n    return settings.OTHER",
    "a module that only the script uses": "import helper\ndef f(x): return x",
}

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
from datadreamer_like.graph.fingerprint import fingerprint
for source in {sources!r}:
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(sys.argv[1]):
            del sys.modules[name]
    names = {{"__name__": "__main__"}}
    exec(source, names)
    print(fingerprint(names["f"]))
"""  # fmt: skip


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """The fingerprints of all functions with three values of FACTOR, the first one twice."""
    folder = tmp_path_factory.mktemp("modules")
    table = {**SEEN, **NOT_SEEN}
    runs = []
    for factor in (2, 2, 50, 51):
        for name, source in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(source.replace("{factor}", str(factor)))
        script = SCRIPT.format(sources=list(table.values()))
        command = [sys.executable, "-c", script, str(folder)]
        env = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONHASHSEED": str(factor)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        runs.append(done.stdout.split())
    return {name: [run[index] for run in runs] for index, name in enumerate(table)}


@pytest.mark.parametrize("way", SEEN)
def test_what_a_function_reaches_decides(digests, way):
    first, again, second, third = digests[way]
    assert first == again
    assert len({first, second, third}) == 3


@pytest.mark.parametrize("way", NOT_SEEN)
def test_what_a_function_does_not_reach_decides_nothing(digests, way):
    assert len(set(digests[way])) == 1


def test_no_module_runs_because_a_text_has_its_name(tmp_path, monkeypatch):
    from datadreamer_like.graph.fingerprint import fingerprint

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "train_13.py").write_text("raise SystemExit('the training ran')")

    def f(x):
        import importlib

        return {"split": "train_13", "module": importlib.import_module("json")}

    before = fingerprint(f)
    (tmp_path / "train_13.py").write_text("1 / 0")
    assert fingerprint(f) != before  # a name that is put into a variable may be imported
    assert "train_13" not in sys.modules


def test_a_module_that_cannot_be_hashed_as_a_whole_is_still_told_by_its_files(tmp_path, monkeypatch):
    from datadreamer_like.graph.fingerprint import fingerprint

    monkeypatch.syspath_prepend(tmp_path)
    source = (
        "import threading, io\nLOCK = threading.Lock()\nOPEN = io.StringIO()\nITEMS = iter([1])\ndef g(): return OPEN\n"
    )
    (tmp_path / "open_module_14.py").write_text(source)

    def f(x):
        import open_module_14

        return getattr(open_module_14, x)

    before = fingerprint(f)
    (tmp_path / "open_module_14.py").write_text(source + "MORE = 1\n")
    assert fingerprint(f) != before


@pytest.mark.parametrize(
    "body",
    ["import no_such_module_14", "from no_such_module_14 import x", "import broken_14", "from broken_14 import x",
     "import numpy as np\n    return np.zeros(x)", "from datadreamer_like.errors import DataError"],
)  # fmt: skip
def test_imports_that_fail_or_are_installed_are_no_obstacle(tmp_path, monkeypatch, body):
    from datadreamer_like.graph.fingerprint import fingerprint

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_14.py").write_text("1 / 0")
    names = {"__name__": "__main__"}
    exec(textwrap.dedent(f"def f(x):\n    {body}\n"), names)
    assert fingerprint(names["f"]) == fingerprint(names["f"])
