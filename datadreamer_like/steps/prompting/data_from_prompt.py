"""Rows from an instruction: the same for all, or with attributes and optionally seeded with real examples."""

from __future__ import annotations

import random
import string
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, did_you_mean
from datadreamer_like.graph.origin import From
from datadreamer_like.graph.output import BATCH_SIZE, Batch
from datadreamer_like.storage.values import to_batch

from ..base.row_answers import AnsweredRows
from .prompt_step import PromptStep, RowPrompt

EXAMPLES = "examples"
"""Name of the placeholder for examples."""

# Marks the place of the examples in a filled instruction; no text contains it.
_MARK = "\0examples\0"

Example: TypeAlias = tuple[str, int]
"""A text, and its position in its column."""


class DataFromPrompt(PromptStep):
    """Sends one instruction `n` times, for a different answer each time.

    Args: `instruction`, `n`, `temperature` (1.0), `top_p` (1.0), and those of `PromptStep`. Outputs: `prompts`,
    `generations`.

    Example:
        >>> args = {"llm": llm, "instruction": "Write a question about cooking.", "n": 10}  # doctest: +SKIP
        >>> made = DataFromPrompt("Questions", args=args)  # doctest: +SKIP
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_data_args()
        self.register_prompt_outputs()

    def register_data_args(self) -> None:
        """Registers the arguments of steps that make data from an instruction."""
        self.register_llm()
        self.register_arg("instruction", type=str, help="What the LLM is to write.")
        self.register_arg("n", type=int, help="How many rows to make.")
        for name in ("temperature", "top_p"):
            what = "0 makes all answers to a prompt the same."
            self.register_arg(name, required=False, default=1.0, type=float, help=what)

    def num_prompts(self) -> int:
        """Returns the number of rows to make."""
        return int(self.args["n"])

    def warn_of_repetition(self, distinct: int) -> None:
        """Warns if answers must repeat, with `distinct` prompts: greedy decoding gives one answer per prompt."""
        if distinct < self.args["n"] and not (self.args["temperature"] and self.args["top_p"]):
            self.logger.warning("%s: a prompt has one answer if temperature or top_p is 0, so rows repeat.", self.name)

    def input_batches(self) -> Iterator[Batch]:
        """Yields the instruction `n` times."""
        self.warn_of_repetition(1)
        for start in range(0, self.num_prompts(), BATCH_SIZE):
            yield {"instruction": [self.args["instruction"]] * min(BATCH_SIZE, self.num_prompts() - start)}

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the instruction for each row."""
        return batch["instruction"]

    def configure(self) -> None:
        """Rejects a number of rows below 1."""
        super().configure()
        if self.num_prompts() < 1:
            raise DefinitionError(f'"{self.name}": argument "n" is {self.num_prompts()}; expected at least 1 row.')


class DataFromAttributedPrompt(DataFromPrompt):
    r"""Fills an instruction's placeholders with each combination of attributes in turn, until there are `n` rows.

    Args: `instruction` (with placeholders like `{topic}`; other braces are doubled), `attributes` (lists of values by
    name, or a list of the combinations themselves, each a dictionary), `n`, `temperature` (1.0), `top_p` (1.0), and
    those of `PromptStep`. Outputs: `attributes` (one dictionary per row), `prompts`, `generations`.

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

    whole_inputs: ClassVar[frozenset[str]] = frozenset({"examples", "example_attributes"})

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("examples", required=False, help="Real texts that seed the prompts.")
        self.register_input("example_attributes", required=False, help="The attribute's value of each example.")
        self.register_data_args()
        self.register_arg("attributes", type=(dict, list, tuple), help="Attribute name to the list of its values.")
        self.register_arg("examples", required=False, type=dict, help="Value of the attribute to real texts.")
        what = "The attribute that the examples are grouped by."
        self.register_arg("examples_attribute", required=False, type=str, help=what, default_help="the only attribute")
        self.register_arg("num_examples", required=False, default=3, type=int, help="Examples in each prompt.")
        self.register_format("\n", example_label="Example:")
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
        combinations = self._combinations()
        examples = self._examples()
        if examples is None:
            self.warn_of_repetition(len(combinations))
        rng = random.Random(self.args["seed"] or 0)
        left: dict[Any, list[Example]] = defaultdict(list)
        rows = islice(cycle(combinations), self.num_prompts())
        while attributes_of_rows := list(islice(rows, BATCH_SIZE)):
            batch: Batch = {"attributes": attributes_of_rows}
            if examples is not None:
                values = [combination[self._examples_attribute()] for combination in attributes_of_rows]
                drawn = [_drawn(examples[value], left[value], self.args["num_examples"], rng) for value in values]
                batch["texts"] = [[text for text, _ in one] for one in drawn]
                batch["positions"] = [[row for _, row in one] for one in drawn]
            yield batch

    def origin(self, rows: AnsweredRows) -> Sequence[From]:
        """Returns the examples that each prompt shows."""
        if not self._inputs:
            return []
        return [From(name, self.shown(rows), role="example") for name in self._inputs]

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the filled instruction for each row."""
        shown = batch.get("texts", [None] * len(batch["attributes"]))
        return [self._prompt(*row) for row in zip(batch["attributes"], shown, strict=True)]

    def _prompt(self, combination: dict[str, Any], shown: list[str] | None) -> RowPrompt:
        instruction = str(self.args["instruction"])
        if shown is None:
            return instruction.format(**combination)
        before, mark, after = instruction.format(**{EXAMPLES: _MARK, **combination}).partition(_MARK)
        if not mark:
            before, after = "", before
        return self.fitted(
            beg_instruction=before.removesuffix("\n") or None,
            in_context_examples=[self.labelled("example_label", text) for text in shown],
            end_instruction=after.removeprefix("\n") or None,
        )

    def _examples(self) -> dict[Any, list[Example]] | None:
        """Returns the examples by value; None if there are no examples."""
        groups: dict[Any, list[Example]] = defaultdict(list)
        if self._inputs:
            for row, (text, value) in enumerate(self.input_rows("examples", "example_attributes")):
                if text is not None:
                    groups[value].append((text, row))
        elif self.args["examples"] is not None:
            groups.update({value: [(text, -1) for text in texts] for value, texts in self.args["examples"].items()})
        else:
            return None
        name = self._examples_attribute()
        values = list(dict.fromkeys(combination[name] for combination in self._combinations()))
        missing = [value for value in values if not groups.get(value)]
        if missing:
            raise DefinitionError(
                f'"{self.name}": no example has the {name} {missing[0]!r}; there are examples of '
                f"{', '.join(map(repr, list(groups)[:20])) or 'nothing'}. Add examples, or remove that value from "
                "the attributes."
            )
        return groups

    def _examples_attribute(self) -> str:
        return str(self.args["examples_attribute"] or next(iter(self._combinations()[0])))

    def _combinations(self) -> list[dict[str, Any]]:
        given = self.args["attributes"]
        if not isinstance(given, dict):
            return [dict(combination) for combination in given]
        attributes = {name: list(values) for name, values in given.items()}
        return [dict(zip(attributes, values, strict=True)) for values in product(*attributes.values())]

    def configure(self) -> None:
        """Rejects an instruction, attributes and examples that do not match."""
        super().configure()
        args = self.args
        attributes = self._checked_attributes(args["attributes"])
        if len(self._inputs) == 1:
            raise DefinitionError(
                f'"{self.name}": give both inputs "examples" and "example_attributes": real texts, and the '
                "attribute's value of each."
            )
        placeholders = self._check_placeholders(args["instruction"], attributes)
        seeded = bool(self._inputs) or args["examples"] is not None
        if self._inputs and args["examples"] is not None:
            raise DefinitionError(f'"{self.name}": give examples as inputs or as an argument, not both.')
        name = args["examples_attribute"]
        if name is not None and name not in attributes:
            raise DefinitionError(
                f'"{self.name}": examples_attribute is "{name}", which is not an attribute; the attributes are: '
                f"{', '.join(attributes)}.{did_you_mean(name, attributes)}"
            )
        if seeded and name is None and len(attributes) > 1:
            raise DefinitionError(
                f'"{self.name}": the examples belong to one of the attributes {", ".join(attributes)}. '
                'Name it: args={"examples_attribute": ...}.'
            )
        if args["num_examples"] < 0:
            raise DefinitionError(f'"{self.name}": num_examples is {args["num_examples"]}; expected 0 or more.')
        if not seeded and EXAMPLES in placeholders and EXAMPLES not in attributes:
            raise DefinitionError(
                f'"{self.name}": the instruction has the placeholder {{examples}}, but there are no examples. Give the '
                'inputs "examples" and "example_attributes", or the argument "examples".'
            )

    def _checked_attributes(self, attributes: Any) -> Mapping[str, Any]:
        """Returns the attributes by name; each of a list of combinations must have the same ones."""
        if not attributes:
            raise DefinitionError(f'"{self.name}": there are no attributes. Give some, or use DataFromPrompt.')
        if not isinstance(attributes, dict):
            for index, combination in enumerate(attributes):
                if not isinstance(combination, Mapping):
                    what = f"{combination!r}; expected a dictionary of attributes"
                    raise ArgumentTypeError(f'"{self.name}": element {index} of attributes is {what}.')
                if set(combination) != set(attributes[0]) or not combination:
                    has, first = (", ".join(map(str, one)) or "none" for one in (combination, attributes[0]))
                    raise DefinitionError(
                        f'"{self.name}": element {index} of attributes has {has}; the first one has {first}. '
                        "Give all of them the same attributes."
                    )
            return {name: [combination[name] for combination in attributes] for name in attributes[0]}
        for name, values in attributes.items():
            if isinstance(values, str) or not hasattr(values, "__iter__"):
                raise ArgumentTypeError(f'"{self.name}": attribute "{name}" is {values!r}; expected a list of values.')
            if not list(values):
                raise DefinitionError(f'"{self.name}": attribute "{name}" has no values.')
        # Values that do not fit one column are rejected before the LLM is asked.
        to_batch({"attributes": [{name: value} for name in attributes for value in attributes[name]]}, f'"{self.name}"')
        return dict(attributes)

    def _check_placeholders(self, instruction: str, attributes: Mapping[str, Any]) -> list[str]:
        try:
            placeholders = [name for _, name, _, _ in string.Formatter().parse(instruction) if name is not None]
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
        for name in attributes:
            if name not in placeholders:
                raise DefinitionError(
                    f'"{self.name}": the instruction does not use the attribute "{name}". Add the placeholder '
                    f"{{{name}}}, or remove the attribute."
                )
        return placeholders


def _drawn(texts: list[Example], left: list[Example], count: int, rng: random.Random) -> list[Example]:
    """Draws up to `count` different texts, each once before any is repeated; `left` holds those not yet drawn."""
    drawn: list[Example] = []
    for _ in range(min(count, len(texts))):
        if not left:
            # A new round leaves out the texts of this draw, so that a prompt never shows a text twice.
            used = {text for text, _ in drawn}
            left.extend(example for example in texts if example[0] not in used)
            rng.shuffle(left)
        if left:
            drawn.append(left.pop())
    return drawn
