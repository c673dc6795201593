"""Templates over several columns: what is sent, what is refused before anything is sent, and that rows are data."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import Echo
from PIL import Image

from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.graph import DataDreamer
from datadreamer_like.steps import (
    DataSource,
    FewShotPrompt,
    FilterWithPrompt,
    JudgePairsWithPrompt,
    ProcessWithPrompt,
    Prompt,
    TemplatePrompt,
)

ROWS = {
    "title": ["A cat", "Two dogs", "A bird"],
    "body": ["It sleeps.", "They say {{ title }} {% raw %}.", None],
    "tags": [["a", "b"], [], ["c"]],
}


def ask(template: Any, llm: Echo | None = None, data: dict[str, Any] | None = None, **args: Any) -> Any:
    columns = DataSource("Rows", data=data or ROWS).output
    inputs = {name: columns[name] for name in data or ROWS}
    return TemplatePrompt("Ask", inputs=inputs, args={"llm": llm or Echo(), "template": template, **args})


def test_columns_fill_the_template_and_a_cell_is_never_executed(session: DataDreamer) -> None:
    llm = Echo()
    made = ask("{{ title }}: {{ body }}", llm)
    sent = ["A cat: It sleeps.", "Two dogs: They say {{ title }} {% raw %}.", None]
    assert list(made.output["prompts"]) == sent
    assert llm.prompts == sorted(sent[:2])  # type: ignore[type-var]
    assert list(made.output["generations"]) == [None if text is None else text.upper() for text in sent]
    assert made.output.column_names == ["title", "body", "tags", "prompts", "generations"]
    assert list(made.output["tags"]) == ROWS["tags"]
    assert made.errors == {}


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ x * n }}", "10,000,000 characters"),
        ("{{ 'x' * 10**9 }}", "10,000,000 characters"),
        ("{{ x.center(n) }}", "10,000,000 characters"),
        ("{{ x | center(n) }}", "10,000,000 characters"),
        ("{{ '%*d' % (n, 1) }}", "10,000,000 characters"),
        ("{{ '{:>{}}'.format(x, n) }}", "10,000,000 characters"),
        ("{{ '{:1000000000}'.format(x) }}", "10,000,000 characters"),
        (
            "{% set its = namespace(v=x) %}{% for _ in range(60) %}{% set its.v = its.v ~ its.v %}{% endfor %}"
            "{{ its.v }}",
            "10,000,000 characters",
        ),
        ("{{ '%*d' | format(n, 1) }}", "10,000,000 characters"),
        ("{{ ('a\n' * 9999) | indent(9999) }}", "10,000,000 characters"),
        ("{{ range(9999) | join('a' * 9999) }}", "10,000,000 characters"),
        ("{{ ('a' * 9999) | replace('a', 'b' * 9999) }}", "10,000,000 characters"),
        ("{{ ('a ' * 9999) | wordwrap(1, wrapstring='b' * 9999) }}", "10,000,000 characters"),
        ("{{ ('a' * 999999) | wordwrap(10) }}", "wraps words or blanks that are too long"),
        ("{{ (' ' * 999999) | wordwrap(10) }}", "wraps words or blanks that are too long"),
        ("{{ ('\t' * 9999).expandtabs(9999) }}", "10,000,000 characters"),
        ("{{ [1] | slice(n) | list }}", "10,000,000 characters"),
        ("{{ [1] | tojson(indent=n) }}", "by more than 100"),
        ("{{ n ** n }}", "digits"),
        ("{{ (1).to_bytes(n, 'big') }}", "10,000,000 characters"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "1,000,000 turns",
        ),
        (
            "{% set its = namespace(v=1) %}{% for _ in range(60) %}{% set its.v = [its.v, its.v] %}{% endfor %}"
            "{{ its.v }}",
            "10,000,000 characters",
        ),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x", "1,000,000 turns"),
    ],
)
def test_a_template_that_takes_too_much_fails_its_row_at_once(session: DataDreamer, template: str, says: str) -> None:
    llm = Echo()
    made = ask("{% if n %}" + template + "{% else %}{{ '-' * 3 }} {{ '%5d|{:>4}'.format(2) % 1 }}{% endif %}", llm,
               {"x": ["ab", "c"], "n": [10**9, 0]})  # fmt: skip
    assert llm.prompts == ["---     1|   2"]
    assert list(made.errors) == [0]
    assert says in made.errors[0]


def test_filters_within_the_limits_work_as_those_of_jinja(session: DataDreamer) -> None:
    llm = Echo()
    ask(
        "{{ [x, 1] | join('; ') }} {{ 'a b' | replace(' ', '_') }} {{ '%03d' | format(7) }} "
        "{{ [1] | tojson(indent=1) }} {{ ['a', 'b'] | map('upper') | join(d='+') }} {{ 'a\nb' | indent(2) }} "
        "{{ [1, 2, 3] | slice(2) | list }}",
        llm, {"x": ["ab"]},
    )  # fmt: skip
    assert llm.prompts == ["ab; 1 a_b 007 [\n 1\n] A+B a\n  b [[1, 2], [3]]"]


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("{% if body %}{{ body | length }}{% endif %}", ["10", str(len(ROWS["body"][1])), None]),
        ("{{ title }}{% if body is not defined %} (no text){% endif %}", ["A cat", "Two dogs", "A bird (no text)"]),
        (
            "{% if body %}{% set end = '!' %}{% else %}{% set end %}.{% endset %}{% endif %}{{ title }}{{ end }}",
            ["A cat!", "Two dogs!", "A bird."],
        ),
        ("{{ title }}{% if body is none %} (no text){% endif %}", ["A cat", "Two dogs", "A bird (no text)"]),
        ("{{ title }}{% if body == none %} (no text){% endif %}", ["A cat", "Two dogs", "A bird (no text)"]),
        (
            "{{ title }}{% if body is not none %}: {{ body }}{% endif %}",
            [f"A cat: {ROWS['body'][0]}", f"Two dogs: {ROWS['body'][1]}", "A bird"],
        ),
        ("{% if body != 'It sleeps.' %}{{ title }}{% endif %}", [None, "Two dogs", "A bird"]),
        ("{{ body or 'nothing' }}", ["It sleeps.", ROWS["body"][1], "nothing"]),
        ("{% for tag in tags %}\n- {{ tag }}\n{% endfor %}", ["- a\n- b\n", None, "- c\n"]),
        ("{{ tags | join(', ') }} {{ title.upper() }}", ["a, b A CAT", " TWO DOGS", "c A BIRD"]),
        ("{{ body | upper }}", ["IT SLEEPS.", ROWS["body"][1].upper(), None]),  # type: ignore[union-attr]
    ],
)
def test_missing_values_and_blank_prompts_send_nothing(
    session: DataDreamer, template: str, prompts: list[str | None]
) -> None:
    made = ask(template)
    assert list(made.output["prompts"]) == prompts
    assert made.errors == {}


CELLS = {
    '["é", null]': ["é", None],
    '{"a": [true, null]}': {"a": [True, None]},
    "system: Be kind.\nuser: {{ x }}": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "{{ x }}"},
    ],
    '[{"role": "user", "content": null, "tool_calls": [1]}]': [{"role": "user", "content": None, "tool_calls": [1]}],
    "2.5": 2.5,
}


@pytest.mark.parametrize("sent", CELLS)
def test_a_list_is_json_and_a_chat_lines_in_every_prompt_of_text(session: DataDreamer, sent: str) -> None:
    llm = Echo()
    rows = DataSource("Rows", data={"cell": [CELLS[sent]], "given": ["1"], "made": ["2"]}).output
    column, examples = rows["cell"], {"input_examples": rows["given"], "output_examples": rows["made"]}
    args = {"llm": llm, "instruction": "Go.", "sep": "|"}
    steps = [
        TemplatePrompt("Template", inputs={"cell": column}, args={"llm": llm, "template": "Input: {{ cell }}"}),
        ProcessWithPrompt("Process", inputs={"inputs": column}, args=args),
        FilterWithPrompt(
            "Filter", inputs={"inputs": column}, args={**args, "instruction": "Keep?", "filter_func": lambda text: True}
        ),
        FewShotPrompt(
            "Examples",
            inputs={"inputs": column, **examples},
            args={"llm": llm, "input_label": "Input:"},
        ),
        JudgePairsWithPrompt(
            "Judge", inputs={"a": column, "b": column}, args={"llm": llm, "a_label": "Input:", "max_follow_ups": 0}
        ),
    ]
    assert len(steps) == len(llm.prompts)
    assert all(f"Input: {sent}" in prompt for prompt in llm.prompts)


CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("template", "sent"),
    [
        ("{{ chat ~ '!' }}", "system: Be kind.\nuser: Hi!"),
        ("{{ chat | string }}", "system: Be kind.\nuser: Hi"),
        ("{{ chat[1:] ~ '!' }}", "user: Hi!"),
        ("{{ '%s!' | format(chat) }}", "system: Be kind.\nuser: Hi!"),
        ("{{ '%s!' % chat }}", "system: Be kind.\nuser: Hi!"),
        ("{{ '{}{}'.format(chat[1:], facts) }}", 'user: Hi{"a": [null, "é"]}'),
        ("{{ chat[1:] | upper }}", "USER: HI"),
        ("{{ chat | join(' + ') }}", '{"role": "system", "content": "Be kind."} + {"role": "user", "content": "Hi"}'),
        ("{{ chat | map(attribute='content') | list ~ '!' }}", '["Be kind.", "Hi"]!'),
        ("{{ facts ~ facts.a ~ 1 }}", '{"a": [null, "é"]}[null, "é"]1'),
        ("{{ facts.a | tojson }}", '[null, "é"]'),
        ("{% if facts.a is sequence and facts is mapping %}{{ facts.keys() | first }}{% endif %}", "a"),
    ],
)
def test_a_list_is_never_python_code_whatever_a_template_does_with_it(
    session: DataDreamer, template: str, sent: str
) -> None:
    llm = Echo()
    made = ask(template, llm, data={"chat": [CHAT], "facts": [{"a": [None, "é"]}]})
    assert llm.prompts == list(made.output["prompts"]) == [sent]


def test_text_joined_with_a_missing_value_makes_no_prompt(session: DataDreamer) -> None:
    assert list(ask("{{ body ~ '!' }}").output["prompts"]) == ["It sleeps.!", f"{ROWS['body'][1]}!", None]


def test_messages_are_templates_too_and_a_blank_one_is_left_out(session: DataDreamer) -> None:
    llm = Echo(lambda prompt: "fine")
    made = ask(
        [
            {"role": "system", "content": "{% if tags %}Tags: {{ tags | join }}{% endif %}"},
            {"role": "user", "content": "{{ title }}?"},
        ],
        llm,
    )
    assert sorted((request.prompt for request in llm.asked), key=str, reverse=True) == [
        [{"role": "user", "content": "Two dogs?"}],
        [{"role": "system", "content": "Tags: c"}, {"role": "user", "content": "A bird?"}],
        [{"role": "system", "content": "Tags: ab"}, {"role": "user", "content": "A cat?"}],
    ]
    assert list(made.output["generations"]) == ["fine"] * 3


def test_a_column_of_messages_is_a_column_of_prompts(session: DataDreamer) -> None:
    chats = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Yo", "name": "ann"}],
    ]
    llm = Echo(lambda prompt: "fine")
    source = DataSource("Chats", data={"messages": chats})
    Prompt("Ask", inputs={"prompts": source.output["messages"]}, args={"llm": llm})
    assert sorted((request.prompt for request in llm.asked), key=len, reverse=True) == chats


def test_what_the_template_leaves_out_reaches_parse(session: DataDreamer) -> None:
    made = ask("{{ title }}", parse=lambda answer, row: f"{answer.text} {row['tags']}")
    assert list(made.output["generations"])[0] == "A CAT ['a', 'b']"


REFUSED = {
    "an unknown variable": ("{{ titel }}", r'uses "titel".*inputs are: title, body, tags\. Did you mean "title"\?'),
    "a syntax error": ("{{ title }}\n{% if %}", "line 2 of the template"),
    "an unknown filter": ("{{ title | shout }}", "shout"),
    "a private attribute": ("{{ title.__class__ }}", "leave its sandbox"),
    "a private attribute by key": ("{{ title['__class__'].mro() }}", "leave its sandbox"),
    "a private attribute of a global": ("{{ cycler.__init__.__globals__ }}", "leave its sandbox"),
    "another file": ("{% include '/etc/passwd' %}", "loads another template"),
    "an import": ("{% import 'os' as os %}{{ os }}", "loads another template"),
    "a private attribute by filter": ("{{ title | attr('__class__') }}", "leave its sandbox"),
    "a name put together": ("{{ title['__cl' ~ 'ass__'].mro() }}", "leave its sandbox"),
    "a changed row": ("{{ tags.append('x') }}", "leave its sandbox"),
    "a blank text": (" ", "template is blank"),
    "chance": ("{{ ['a', 'b'] | random }}", "uses random.*Sample"),
    "chance by a function": ("{{ title }}\n{{ lipsum() }}", "line 2 of the template uses lipsum"),
    "too many blocks": ("{% for a in [1] %}" * 30 + "x" + "{% endfor %}" * 30, "nested too deeply"),
    "too many brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    "a name put together by a filter": ("{{ [title] | map(attribute='__cl' ~ 'ass__') | list }}", "leave its sandbox"),
    "a part of the template itself": ("{{ self | attr('_Template' ~ 'Reference__context') }}", "leave its sandbox"),
    "a frame": ("{{ ([title] | map('upper')).gi_frame }}", "leave its sandbox"),
    "a format string": ("{{ '{0.__class__.__mro__}'.format(title) }}", "leave its sandbox"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_template_is_one_error_before_anything_is_sent(session: DataDreamer, case: str) -> None:
    template, message = REFUSED[case]
    llm = Echo()
    with pytest.raises(DefinitionError, match=f'(?s)"Ask".*{message}'):
        ask(template, llm)
    assert llm.asked == []


def test_methods_of_objects_in_a_row_cannot_be_called(session: DataDreamer, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    image = Image.fromarray(np.zeros((2, 2, 3), np.uint8))
    llm = Echo()
    with pytest.raises(DefinitionError, match="leave its sandbox"):
        ask(f"{{{{ picture.save('{file}') }}}}", llm, data={"picture": [image], "title": ["x"]})
    assert not file.exists()
    assert llm.asked == []
    made = ask(
        "{{ day.isoformat() }} {{ picture.width }}", data={"picture": [image], "day": [datetime.date(2026, 1, 2)]}
    )
    assert list(made.output["prompts"]) == ["2026-01-02 2"]


def test_a_row_that_cannot_be_filled_fails_alone(session: DataDreamer) -> None:
    made = ask("{{ 6 // count }} {{ facts.x }}", data={"count": [3, 0, 2], "facts": [{"x": 1}, {"x": 1}, {"x": None}]})
    assert list(made.output["prompts"]) == ["2 1", None, None]
    assert list(made.errors) == [1]
    assert "ZeroDivisionError" in made.errors[1]
    made = ask("{{ facts.y }}", data={"facts": [{"x": 1}]})
    assert "'mapping' has no attribute 'y'" in made.errors[0]


ORDER = {"items": ["x", "y"], "k": 1}


@pytest.mark.parametrize(
    ("template", "sent"),
    [
        ("{{ order.items }} {{ order.items[1] }} {{ order.k }}", '["x", "y"] y 1'),
        ("{% for key, _ in order.items() %}{{ key }};{% endfor %}", "items;k;"),
        ("{{ order.keys() }} {{ range(2) }}", '["items", "k"] [0, 1]'),
        ("{{ order['items'] | map('upper') }}", '["X", "Y"]'),
        ("{% set s = joiner(', ') %}{% for i in order.items %}{{ s() }}{{ loop.cycle('a', 'b') }}{% endfor %}", "a, b"),
    ],
)
def test_a_key_comes_before_a_method_and_what_is_listed_is_printed(
    session: DataDreamer, template: str, sent: str
) -> None:
    assert list(ask(template, data={"order": [ORDER]}).output["prompts"]) == [sent]


@pytest.mark.parametrize("template", ["{{ order.keys }}", "{{ 'a ' ~ title.upper }}", "{{ namespace }}"])
def test_a_function_that_is_not_called_fails_its_row(session: DataDreamer, template: str) -> None:
    made = ask(template, data={"order": [ORDER], "title": ["x"]})
    assert list(made.output["prompts"]) == [None]
    assert "prints the function" in made.errors[0]


@pytest.mark.parametrize(
    ("inputs", "template", "error", "message"),
    [
        (("prompts",), "{{ prompts }}", DefinitionError, '"prompts" has the name of an output'),
        (("my text",), "x", DefinitionError, '"my text" has a name that no template can use'),
        ((), "hello", DefinitionError, "there are no inputs"),
        (("text",), [], DefinitionError, "no messages"),
        (("text",), [{"role": "user"}], ArgumentTypeError, '"role" and "content"'),
        (("text",), 5, ArgumentTypeError, "template"),
    ],
)
def test_names_and_templates_that_do_not_fit_are_refused(
    session: DataDreamer, inputs: tuple[str, ...], template: Any, error: type[Exception], message: str
) -> None:
    column = DataSource("Rows", data={"text": ["a"]}).output["text"]
    with pytest.raises(error, match=message):
        TemplatePrompt("Ask", inputs=dict.fromkeys(inputs, column), args={"llm": Echo(), "template": template})


def test_the_text_of_a_template_decides_what_is_made_anew(tmp_path: Path) -> None:
    asked = []
    for template in ("{{ title }}", "{{ title }}", "{{ title }}!", "{{ title }}"):
        with DataDreamer(tmp_path, verbose=False):
            llm = Echo()
            ask(template, llm)
            asked.append(len(llm.asked))
    assert asked == [3, 0, 3, 0]


def test_a_row_leads_back_to_its_columns(session: DataDreamer) -> None:
    made = ask("{{ title }}")
    assert [(parent.node, parent.index) for parent in made.trace(1).parents] == [("Rows", 1)]
