"""Rows from an instruction with attribute placeholders, optionally seeded with real examples."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, TypeAlias

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, did_you_mean
from datadreamer_like.graph.output import BATCH_SIZE, Batch

from ..base.columns import columns_together
from ..base.lazy_rows import From
from ..base.row_answers import AnsweredRows
from .data_from_prompt import DataFromPrompt
from .prompt_step import RowPrompt
from .prompt_text import shown_positions

EXAMPLES = "examples"
"""Name of the placeholder for examples."""


class DataFromAttributedPrompt(DataFromPrompt):
    r"""Fills an instruction's placeholders with each combination of attributes in turn, until there are `n` rows.

    Args: `instruction` (with placeholders like `{topic}`; other braces are doubled), `attributes` (lists of values by
    name), `n`, `temperature` (1.0), `top_p` (1.0), and those of `PromptStep`. Outputs: `attributes` (one dictionary per
    row), `prompts`, `generations`, and a column for each property of `output_schema`.

    Prompts can be seeded with real texts that have the attribute's value: two columns, the inputs `examples` and
    `example_attributes`, or the argument `examples`, lists of texts by value. With several attributes,
    `examples_attribute` names the one that the values belong to. Each prompt shows up to `num_examples` (3), as many as
    fit the model's context, at the placeholder `{examples}` or before the instruction. They are drawn in random order
    (by `seed`), each once before any is repeated.

    Example:
        >>> made = DataFromAttributedPrompt(  # doctest: +SKIP
        ...     "Synthetic descriptions",
        ...     inputs={"examples": real.output["text"], "example_attributes": real.output["topic"]},
        ...     args={
        ...         "llm": llm,
        ...         "instruction": "Descriptions of {topic} packages:\n{examples}\nWrite another one.",
        ...         "attributes": {"topic": ["games", "science"]},
        ...         "n": 1000,
        ...     },
        ... )
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("examples", required=False, help="Real texts that seed the prompts.")
        self.register_input("example_attributes", required=False, help="The attribute's value of each example.")
        self.register_data_args()
        self.register_arg("attributes", type=dict, help="Attribute name to the list of its values.")
        self.register_arg("examples", required=False, type=dict, help="Value of the attribute to real texts.")
        self.register_arg(
            "examples_attribute",
            required=False,
            type=str,
            help="The attribute that the examples are grouped by.",
            default_help="the only attribute",
        )
        self.register_arg("num_examples", required=False, default=3, type=int, help="Examples in each prompt.")
        self.register_arg("example_label", required=False, default="Example:", type=str, help="Before each example.")
        self.register_arg("sep", required=False, default="\n", type=str, help="Between examples.")
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("seed", required=False, type=int, help="For the examples' order, and for the LLM.")
        self.register_output("attributes", help="The attributes of each row.")
        self.register_prompt_outputs()

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        args = {"instruction": "Write a {tone} review.", "attributes": {"tone": ["kind", "angry"]}, "n": 2}
        return {"inputs": {}, "args": args}

    def input_batches(self) -> Iterator[Batch]:
        """Yields the attributes of each row, and the examples for its prompt."""
        attributes: dict[str, list[Any]] = {name: list(values) for name, values in self.args["attributes"].items()}
        combinations = [dict(zip(attributes, values, strict=True)) for values in product(*attributes.values())]
        examples = self._examples()
        if examples is None:
            self.warn_of_repetition(len(combinations))
        count = self.args["num_examples"]
        rows = islice(cycle(combinations), self.num_prompts())
        while attributes_of_rows := list(islice(rows, BATCH_SIZE)):
            batch: Batch = {"attributes": attributes_of_rows}
            if examples is not None:
                of = self._examples_attribute()
                drawn = [examples.draw(combination[of], count) for combination in attributes_of_rows]
                batch["examples"] = [[text for text, _ in one] for one in drawn]
                batch["example_rows"] = [[row for _, row in one] for one in drawn]
            yield batch

    def origin(self, rows: AnsweredRows) -> Sequence[From]:
        """Returns the examples that each prompt shows."""
        if not self._inputs:
            return []
        found = shown_positions(rows.values, rows.rows["examples"], rows.rows["example_rows"])
        return [From(name, found, role="example") for name in self._inputs]

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the filled instruction for each row."""
        shown = batch.get("examples", [None] * len(batch["attributes"]))
        return [self._prompt(*row) for row in zip(batch["attributes"], shown, strict=True)]

    def _prompt(self, combination: dict[str, Any], shown: list[str] | None) -> RowPrompt:
        instruction = str(self.args["instruction"])
        if shown is None:
            return instruction.format(**combination)
        before, mark, after = _filled(instruction, combination).partition(_MARK)
        if not mark:
            before, after = "", before
        label = self.args["example_label"]
        return self.fitted(
            lambda: self.args["llm"].format_prompt(
                max_new_tokens=self.args["max_new_tokens"],
                beg_instruction=before.removesuffix("\n") or None,
                in_context_examples=[f"{label} {text}" if label else text for text in shown],
                end_instruction=after.removeprefix("\n") or None,
                sep=self.args["sep"],
            ),
        )

    def _examples(self) -> _Examples | None:
        groups: dict[Any, list[Example]] = {}
        if "examples" in self._inputs:
            batches = columns_together(self._inputs, f'"{self.name}"')
            pairs = (
                pair for batch in batches for pair in zip(batch["examples"], batch["example_attributes"], strict=True)
            )
            for row, (text, value) in enumerate(pairs):
                if text is not None:
                    groups.setdefault(value, []).append((text, row))
        elif self.args["examples"] is not None:
            groups = {value: [(text, -1) for text in texts] for value, texts in self.args["examples"].items()}
        else:
            return None
        name = self._examples_attribute()
        missing = [value for value in self.args["attributes"][name] if not groups.get(value)]
        if missing:
            raise DefinitionError(
                f'"{self.name}": no example has the {name} {missing[0]!r}; there are examples of '
                f"{', '.join(map(repr, list(groups)[:20])) or 'nothing'}. Add examples, or remove that value from "
                "the attributes."
            )
        return _Examples(groups, self.args["seed"])

    def _examples_attribute(self) -> str:
        return str(self.args["examples_attribute"] or next(iter(self.args["attributes"])))

    def configure(self) -> None:
        """Rejects an instruction, attributes and examples that do not match."""
        super().configure()
        args = self.args
        if len(self._inputs) == 1:
            raise DefinitionError(
                f'"{self.name}": give both inputs "examples" and "example_attributes": real texts, and the '
                "attribute's value of each."
            )
        self._check_attributes(args["attributes"])
        self._check_placeholders(str(args["instruction"]), args["attributes"])
        seeded = bool(self._inputs) or args["examples"] is not None
        if self._inputs and args["examples"] is not None:
            raise DefinitionError(f'"{self.name}": give examples as inputs or as an argument, not both.')
        name = args["examples_attribute"]
        if name is not None and name not in args["attributes"]:
            raise DefinitionError(
                f'"{self.name}": examples_attribute is "{name}", which is not an attribute; the attributes are: '
                f"{', '.join(args['attributes'])}.{did_you_mean(name, args['attributes'])}"
            )
        if seeded and name is None and len(args["attributes"]) > 1:
            raise DefinitionError(
                f'"{self.name}": the examples belong to one of the attributes {", ".join(args["attributes"])}. '
                'Name it: args={"examples_attribute": ...}.'
            )
        if args["num_examples"] < 0:
            raise DefinitionError(f'"{self.name}": num_examples is {args["num_examples"]}; expected 0 or more.')
        if not seeded and EXAMPLES not in args["attributes"] and EXAMPLES in _placeholders(args["instruction"]):
            raise DefinitionError(
                f'"{self.name}": the instruction has the placeholder {{examples}}, but there are no examples. Give the '
                'inputs "examples" and "example_attributes", or the argument "examples".'
            )

    def _check_attributes(self, attributes: Mapping[str, Any]) -> None:
        if not attributes:
            raise DefinitionError(f'"{self.name}": there are no attributes. Give some, or use DataFromPrompt.')
        for name, values in attributes.items():
            if isinstance(values, str) or not hasattr(values, "__iter__"):
                raise ArgumentTypeError(
                    f'"{self.name}": attribute "{name}" is {values!r}; expected a list of its values.'
                )
            if not list(values):
                raise DefinitionError(f'"{self.name}": attribute "{name}" has no values.')

    def _check_placeholders(self, instruction: str, attributes: Mapping[str, Any]) -> None:
        try:
            placeholders = _placeholders(instruction)
        except ValueError as error:
            raise DefinitionError(
                f'"{self.name}": the instruction has unbalanced braces ({error}). Double braces that are text: '
                "{{ or }}."
            ) from error
        for name in placeholders:
            if name not in attributes and name != EXAMPLES:
                raise DefinitionError(
                    f'"{self.name}": the instruction has the placeholder {{{name}}}, but there is no such attribute; '
                    f"the attributes are: {', '.join(attributes)}.{did_you_mean(name, attributes)} Double braces that "
                    "are text."
                )
        unused = [name for name in attributes if name not in placeholders]
        if unused:
            raise DefinitionError(
                f'"{self.name}": the instruction does not use the attribute "{unused[0]}". Add the placeholder '
                f"{{{unused[0]}}}, or remove the attribute."
            )


Example: TypeAlias = tuple[str, int]
"""A text, and its position in its column."""


class _Examples:
    """Texts by value, drawn in random order; each is drawn once before any is repeated."""

    def __init__(self, groups: dict[Any, list[Example]], seed: int | None) -> None:
        self._rng = random.Random(seed or 0)
        self._groups = groups
        self._left: dict[Any, list[Example]] = {}

    def draw(self, value: Any, count: int) -> list[Example]:
        """Returns up to `count` different texts of a value."""
        texts = self._groups[value]
        drawn: list[Example] = []
        left = self._left.setdefault(value, [])
        for _ in range(min(count, len(texts))):
            if not left:
                # A new round leaves out the texts of this draw, so that a prompt never shows a text twice.
                used = {text for text, _ in drawn}
                left.extend(example for example in texts if example[0] not in used)
                self._rng.shuffle(left)
            if left:
                drawn.append(left.pop())
        return drawn


# Marks the place of the examples in a filled instruction; no text contains it.
_MARK = "\0examples\0"


def _filled(instruction: str, combination: dict[str, Any]) -> str:
    return instruction.format(**{EXAMPLES: _MARK, **combination})


def _placeholders(instruction: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(instruction) if name is not None]
