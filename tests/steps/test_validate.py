"""Validators: what is valid passes, what is not is rejected with a reason that says why."""

from __future__ import annotations

import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from subjects import Lengths

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MissingExtra, StepOutputError
from datadreamer_like.steps import (
    DataSource,
    InLanguage,
    LengthBetween,
    MatchesPattern,
    NoPII,
    NoProfanity,
    Step,
    Validate,
    ValidJSON,
    ValidPython,
    ValidSQL,
)


class Person(BaseModel):
    name: str
    age: int


def checked(texts: list[Any], *validators: Any, **args: Any) -> Step:
    rows = DataSource("Rows", {"text": texts})
    return Validate("Valid", inputs={"inputs": rows.output["text"]}, args={"validators": [*validators], **args})


# Those that load a library or a model are made in the test.
CASES: list[tuple[Any, list[str], dict[str, str]]] = [
    (
        ValidPython(),
        ["x = 1", "", "def f(a, /, *, b): ...\n", "x = '\\d'", "async def f():\n    await g()"],
        {
            "x = (1": "never closed",
            "print 1": "Missing parentheses",
            "x = '\0'": "null",
            "(" * 3000: "not Python",
            "return 1": "'return' outside function",
            "await x": "outside function",
            "break": "outside loop",
        },
    ),
    (
        ValidSQL,
        ["SELECT a FROM b", "WITH x AS (SELECT 1) SELECT * FROM x;", "INSERT INTO t VALUES (1); DROP TABLE t"],
        {
            "SELEC a FROM b": "not SQL",
            "hello world": "no statement",
            "": "no statement",
            "SELECT * FROM": "not SQL",
            "Show me the answer, please.": "the statement SHOW cannot be parsed",
            "SELECT 1; call me maybe": "the statement CALL cannot be parsed",
            "Explain the theory of relativity": "the statement EXPLAIN cannot be parsed",
        },
    ),
    (partial(ValidSQL, "sqlite"), ["SELECT `a` FROM [b]"], {"SELECT a FROM t WHERE x = 'a' AND": "not SQL"}),
    (
        ValidJSON(),
        ["{}", "[1, null]", '"a"', " 1 "],
        {
            "": "Expecting value",
            "{'a': 1}": "not JSON",
            "NaN": "not a JSON value",
            "[" * 100_000: "too deeply",
            "1 2": "Extra",
        },
    ),
    (
        ValidJSON(Person),
        ['{"name": "Ada", "age": 36}'],
        {'{"name": "Ada"}': "'age' is a required property", '{"name": 1, "age": 2}': "name: 1 is not of type"},
    ),
    (ValidJSON({"items": {"type": "integer"}}), ["[1]"], {'["a"]': "0: 'a' is not of type 'integer'"}),
    (MatchesPattern(r"^\d+$"), ["12"], {"a12": r"does not match \^", "": "does not match"}),
    (MatchesPattern(r"(?i)as an ai", absent=True), ["I am"], {"As an AI, I": "matches"}),
    (LengthBetween(2, 3), ["one two", "one, two; three!"], {"one": "fewer than 2 words: 1", "a b c d": "more than 3"}),
    (LengthBetween(2, unit="characters"), ["ab", "é\u0301x"], {"a": "fewer than 2 characters: 1"}),
    (LengthBetween(1, 3, "tokens", Lengths()), ["abc"], {"abcd": "more than 3 tokens: 4"}),
    (LengthBetween(1, 2, "tokens", len), ["ab"], {"abc": "more than 2 tokens: 3"}),
    (
        partial(InLanguage, "en"),
        ["This sentence is written in the English language.", "where is my new card?"],
        {
            "": "no letters",
            "123 🙂": "in no language",
            "Dieser Satz ist in deutscher Sprache geschrieben.": "another language: de",
            "これは日本語です": "ja",
        },
    ),
    (
        partial(InLanguage, ["de", "fr"], among=["de", "fr", "en"]),
        ["Wo ist mein Geld?", "où est ma carte"],
        {"my card": "en"},
    ),
    (
        NoProfanity,
        ["a nice day in Scunthorpe", "assess the classics"],
        {"what the fuck": "fuck", "sh1t": "profanity"},
    ),
    (partial(NoProfanity, allowed=["fuck"]), ["what the fuck"], {"shit": "profanity: shit"}),
    (partial(NoProfanity, languages=["german"]), ["ein Tag"], {"du arschloch": "arschloch"}),
    (
        NoPII,
        [
            "Call us soon, version 1.2.3.4, order 123456789.",
            "card 4111 1111 1111 1112",
            "pi is 3.14159265358979",
            "0.07123456789",
            "1 100 200 3000",
            "an increase of +100 000 000",
            "at 2024-11-27T04:00:00+01:00",
            "UTC+00 100 200",
        ],
        {
            "ada@example.com": "personal data: email",
            "card 4111 1111 1111 1111": "credit_card",
            "+1 415-555-2671": "phone",
            "Call 555-123-4567": "phone",
            "(555) 123-4567.": "phone",
            "1.415.555.2671": "phone",
            "GB82WEST12345698765432": "iban",
            "GB82 WEST 1234 5698 7654 32": "iban",
            "+49 30 1234567": "phone",
            "+1 555 123 4567": "phone",
            "0049 (0)30/1234567": "phone",
            "(+33 1 23 45 67 89)": "phone",
        },
    ),
    (partial(NoPII, ["ip"]), ["ada@example.com"], {"at 10.0.0.1": "personal data: ip"}),
]


@pytest.mark.parametrize(
    ("validator", "valid", "invalid"),
    CASES,
    ids=lambda case: getattr(case, "func", case if isinstance(case, type) else type(case)).__name__,
)
def test_valid_texts_pass_and_others_are_rejected_with_the_reason(
    session: DataDreamer, validator: Any, valid: list[str], invalid: dict[str, str]
):
    step = checked([*valid, *invalid, None], validator() if isinstance(validator, partial | type) else validator)
    assert list(step.output["text"]) == valid
    assert list(step.rejected.output["text"]) == [*invalid, None]
    *reasons, last = step.rejected.output["reason"]
    assert last == "missing"
    for reason, expected in zip(reasons, invalid.values(), strict=True):
        assert re.search(expected, reason), reason


@settings(max_examples=20, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists, max_leaves=5
    )
)
def test_all_that_json_writes_is_valid(value: Any):
    assert ValidJSON()(json.dumps(value)) is None


@settings(max_examples=20, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_gets_an_answer_and_no_error(text: str):
    for validator in (ValidPython(), ValidSQL(), ValidJSON(), NoPII(), NoProfanity(), InLanguage("en")):
        assert validator(text) is None or isinstance(validator(text), str)


def test_reasons_of_all_validators_are_kept_and_counted(session: DataDreamer):
    def no_digits(text: str) -> bool:
        return not any(sign.isdigit() for sign in text)

    def in_stock(text: str) -> str | None:
        return "sold out" if "shoes" in text else None

    step = checked(["a 1", "shoes 2 3 4", "fine text", None], LengthBetween(1, 3), no_digits, in_stock)
    twice = checked(["a", "a b c"], LengthBetween(2), LengthBetween(1, 2))
    assert list(twice.rejected.output["reason"]) == ["fewer than 2 words: 1", "more than 2 words: 3"]
    assert list(step.output["text"]) == ["fine text"]
    assert list(step.rejected.output["reason"]) == [
        "fails no_digits",
        "more than 3 words: 4; fails no_digits; sold out",
        "missing",
    ]
    counts = step.card.facts["Rejected"]
    assert counts == "3 of 4 rows (75.00 %): no_digits 2, LengthBetween 1, in_stock 1, missing 1"
    assert [step.rejected.trace(row).parents[0].index for row in range(3)] == [0, 1, 3]
    whole = checked(["a 1", "b"], no_digits, drop=False)
    assert list(whole.output["reason"]) == ["fails no_digits", None]


def test_a_changed_option_runs_again_and_the_same_one_does_not(tmp_path: Path):
    def run(*validators: Any) -> tuple[int, bool]:
        with DataDreamer(tmp_path / "out", verbose=False):
            rows = DataSource("Rows", {"text": ["one", "one two"]})
            made = []

            def note(text: str) -> bool:
                made.append(text)
                return True

            step = Validate("Valid", {"inputs": rows.output["text"]}, {"validators": [*validators, note]})
            return len(step.output), bool(made)

    assert run(LengthBetween(2)) == (1, True)
    assert run(LengthBetween(2)) == (1, False)
    assert run(LengthBetween(1)) == (2, True)
    assert run(ValidJSON({"type": "object"})) == (0, True)
    assert run(ValidJSON({"type": "string"})) == (0, True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ValidSQL("sqlit"), DefinitionError, 'no dialect .sqlit.*Did you mean "sqlite"'),
        (lambda: ValidJSON({"type": "objekt"}), DefinitionError, "not a valid JSON schema"),
        (lambda: ValidJSON({"$ref": "https://example.com/schema.json"}), DefinitionError, "leads nowhere"),
        (lambda: ValidJSON(5), ArgumentTypeError, "pydantic model class or a JSON schema"),
        (lambda: MatchesPattern("("), DefinitionError, "not a regular expression"),
        (lambda: MatchesPattern(5), ArgumentTypeError, "pattern must be a text"),  # type: ignore[arg-type]
        (lambda: LengthBetween(5, 2), DefinitionError, "most is 2; it must be at least 5"),
        (lambda: LengthBetween(1.5), ArgumentTypeError, "least must be a whole number"),  # type: ignore[arg-type]
        (lambda: LengthBetween(1, unit="word"), DefinitionError, 'unit is .word.*Did you mean "words"'),
        (lambda: LengthBetween(1, unit="tokens"), DefinitionError, "tokenizer go together"),
        (lambda: LengthBetween(1, unit="tokens", tokenizer="bert"), ArgumentTypeError, "cannot count tokens"),
        (
            lambda: InLanguage("english"),
            DefinitionError,
            "'english' is not a known language; known: .*Did you mean \"en\"?",
        ),
        (lambda: InLanguage("en", among=["de"]), DefinitionError, "en must be in `among` too"),
        (lambda: NoProfanity(["klingon"]), DefinitionError, "no list for 'klingon'"),
        (lambda: NoPII(["mail"]), DefinitionError, 'no kind .mail.*Did you mean "email"'),
        (lambda: NoPII("email"), ArgumentTypeError, "kinds must be a list"),
    ],
)
def test_options_that_do_not_fit_are_named_when_the_validator_is_made(make: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()


def test_what_is_no_validator_is_named_before_any_work(session: DataDreamer):
    with pytest.raises(DefinitionError, match='"Valid": argument "validators" is empty'):
        checked(["a"])
    with pytest.raises(ArgumentTypeError, match=r"validators\[1\] is .*Make one of the class: ValidJSON\(\)"):
        checked(["a"], ValidPython(), ValidJSON)
    with pytest.raises(ArgumentTypeError, match=r"validators\[0\] is 'json'"):
        checked(["a"], "json")
    with pytest.raises(DataError, match='column "text" has 5 in row 0, which is not a text'):
        checked([5], ValidJSON())


def test_a_function_that_raises_or_returns_something_else_is_named_with_the_row(session: DataDreamer):
    def broken(text: str) -> float:
        return 1 / (len(text) - 1)

    def raising(text: str) -> bool:
        return 1 / (len(text) - 1) > 0

    with pytest.raises(ZeroDivisionError) as caught:
        checked(["ab", "c"], raising)
    assert '"Valid": the validator raising was given row 1' in "".join(caught.value.__notes__)
    with pytest.raises(StepOutputError, match="the validator broken returned 1.0 for row 0"):
        checked(["ab"], broken)


def test_sql_that_is_not_parsed_is_a_reason_and_no_warning(caplog: pytest.LogCaptureFixture):
    assert ValidSQL()("Create a list of three cats") == "not SQL: the statement CREATE cannot be parsed"
    assert caplog.records == []
    assert not logging.getLogger("sqlglot").disabled


@pytest.mark.parametrize("make", [ValidSQL, NoPII, NoProfanity, lambda: InLanguage("en")])
def test_a_missing_library_is_named_with_the_command(make: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "datadreamer-like\[quality\]"'):
        make()
