"""The tree of errors: one root, each drawn in the module's docstring, each also what a script may catch already."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re
from pathlib import Path

import pytest

from datadreamer_like import errors

CLASSES = {
    name: thing for name, thing in vars(errors).items() if inspect.isclass(thing) and issubclass(thing, Exception)
}
BUILTINS = {thing for thing in vars(builtins).values() if inspect.isclass(thing) and issubclass(thing, Exception)}


def drawn() -> dict[str, str | None]:
    """Each error of the docstring's drawing, with the one that it hangs on."""
    parents: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)", line)
        if match is None:
            continue
        depth = len(match.group(1)) // 4
        path = [(at, name) for at, name in path if at < depth]
        parents[match.group(2)] = path[-1][1] if path else None
        path.append((depth, match.group(2)))
    return parents


def test_the_drawing_shows_every_error_where_it_hangs() -> None:
    real = {
        name: next((base.__name__ for base in kind.__bases__ if issubclass(base, errors.DataDreamerError)), None)
        for name, kind in CLASSES.items()
    }
    assert drawn() == real


@pytest.mark.parametrize("kind", [kind for kind in CLASSES.values() if kind is not errors.DataDreamerError])
def test_every_error_is_ours_and_also_a_builtin_that_a_script_may_catch(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.DataDreamerError)
    assert {base for base in kind.__mro__ if base in BUILTINS} - {Exception, BaseException}, "it is no builtin error"
    assert (kind.__doc__ or "").split("\n\n")[0].strip().endswith(".")


@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_error_shows_its_message_as_it_is_and_survives_a_pickle(kind: type[Exception]) -> None:
    error = kind('"Load" has no column "txt". Did you mean "text"?')
    assert str(error) == '"Load" has no column "txt". Did you mean "text"?'
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("article", "names"),
    [
        ("a", "BertModel list Unigram UserModel ndarray LlamaForCausalLM Linear"),
        ("an", "OnnxModel int ElectraModel LLM NF4 MPNetModel HFTransformers XLMRobertaModel"),
    ],
)
def test_a_class_is_named_with_the_article_that_it_is_spoken_with(article: str, names: str) -> None:
    for name in names.split():
        assert errors.with_article(name) == f"{article} {name}"
    assert errors.with_article(OSError, "A") == "An OSError"


def test_no_message_writes_the_article_of_a_class_itself() -> None:
    package = Path(errors.__file__).parent
    wrong = re.compile(r"\b[Aa]n? \{type\(")
    assert [str(file) for file in package.rglob("*.py") if wrong.search(file.read_text(encoding="utf-8"))] == []
