"""Rows out of an instruction with holes, one for each combination of attributes, seeded with real examples."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Mapping
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, did_you_mean
from datadreamer_like.graph.output import BATCH_SIZE

from ..base.row_answers import Portion, columns_together
from .data_from_prompt import DataFromPrompt

EXAMPLES_HOLE = "examples"


class DataFromAttributedPrompt(DataFromPrompt):
    r"""Fills the holes of an instruction with every combination of attributes, in turn, until there are `n` rows.

    Args: `llm`, `instruction` (with holes like `{topic}`; a brace that is no hole is written twice), `attributes` (name
    to list of values), `n`, `temperature` (1.0), `top_p` (1.0), `post_process`, `lazy`, and the options of `llm.run`.
    Outputs: `attributes` (a dictionary a row), `prompts`, `generations`.

    Each prompt may be seeded with real texts that have its attribute's value. They come from two columns, the inputs
    `examples` and `example_attributes`, or from the argument `examples`, a dictionary of value to texts.
    `examples_attribute` names the attribute that the values belong to, where there are several. Each prompt shows
    `num_examples` (3) of them, as many as fit the model's context: where the instruction has the hole `{examples}`, or
    else before it. They are dealt out in random order (by `seed`), so that all are shown before one is shown again.

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
        self.register_arg("sep", required=False, default="\n", type=str, help="Stands between examples.")
        self.register_arg("max_new_tokens", required=False, type=int, help="Most tokens of an answer.")
        self.register_arg("seed", required=False, type=int, help="For the examples' order, and for the LLM.")
        self.register_output("attributes", help="The attributes of each row.")
        self.register_prompt_outputs()

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        args = {"instruction": "Write a {tone} review.", "attributes": {"tone": ["kind", "angry"]}, "n": 2}
        return {"inputs": {}, "args": args}

    def prompted(self) -> Iterator[Portion]:
        """Yields the instruction with its holes filled."""
        attributes: dict[str, list[Any]] = {name: list(values) for name, values in self.args["attributes"].items()}
        combinations = [dict(zip(attributes, values, strict=True)) for values in product(*attributes.values())]
        examples = self._examples()
        if examples is None:
            self.warn_of_repetition(len(combinations))
        index = 0
        rows = islice(cycle(combinations), self.num_prompts())
        while portion := list(islice(rows, BATCH_SIZE)):
            prompts = []
            for combination in portion:
                prompts.append(self._prompt(index, combination, examples))
                index += 1
            yield prompts, {"attributes": portion, "prompts": prompts}

    def _prompt(self, index: int, combination: dict[str, Any], examples: _Deck | None) -> str | None:
        instruction = str(self.args["instruction"])
        if examples is None:
            return instruction.format(**combination)
        shown = examples.draw(combination[self._examples_attribute()], self.args["num_examples"])
        before, hole, after = _filled(instruction, combination).partition(_MARK)
        if not hole:
            before, after = "", before
        label = self.args["example_label"]
        return self.fitted(
            index,
            lambda: self.args["llm"].format_prompt(
                max_new_tokens=self.args["max_new_tokens"],
                beg_instruction=before.removesuffix("\n") or None,
                in_context_examples=[f"{label} {text}" if label else text for text in shown],
                end_instruction=after.removeprefix("\n") or None,
                sep=self.args["sep"],
            ),
        )

    def _examples(self) -> _Deck | None:
        groups: dict[Any, list[str]] = {}
        if "examples" in self._inputs:
            for batch in columns_together(self._inputs, f'"{self.name}"'):
                for text, value in zip(batch["examples"], batch["example_attributes"], strict=True):
                    if text is not None:
                        groups.setdefault(value, []).append(text)
        elif self.args["examples"] is not None:
            groups = {value: list(texts) for value, texts in self.args["examples"].items()}
        else:
            return None
        name = self._examples_attribute()
        missing = [value for value in self.args["attributes"][name] if not groups.get(value)]
        if missing:
            raise DefinitionError(
                f'"{self.name}": there is no example whose {name} is {missing[0]!r}; there are examples of '
                f"{', '.join(map(repr, list(groups)[:20])) or 'nothing'}. Add some, or leave that value out of "
                "the attributes."
            )
        return _Deck(groups, self.args["seed"])

    def _examples_attribute(self) -> str:
        return str(self.args["examples_attribute"] or next(iter(self.args["attributes"])))

    def _checked_inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._checked_inputs(given)
        if len(inputs) == 1:
            raise DefinitionError(
                f'"{self.name}": the inputs "examples" and "example_attributes" go together: real texts, and the '
                "attribute's value of each."
            )
        return inputs

    def _checked_args(self, given: dict[str, Any]) -> dict[str, Any]:
        args = super()._checked_args(given)
        self._check_attributes(args["attributes"])
        self._check_holes(str(args["instruction"]), args["attributes"])
        seeded = bool(self._inputs) or args["examples"] is not None
        if self._inputs and args["examples"] is not None:
            raise DefinitionError(f'"{self.name}": give examples as inputs or as an argument, not both.')
        name = args["examples_attribute"]
        if name is not None and name not in args["attributes"]:
            raise DefinitionError(
                f'"{self.name}": examples_attribute is "{name}", which is no attribute; there are: '
                f"{', '.join(args['attributes'])}.{did_you_mean(name, args['attributes'])}"
            )
        if seeded and name is None and len(args["attributes"]) > 1:
            raise DefinitionError(
                f'"{self.name}": the examples belong to one of the attributes {", ".join(args["attributes"])}. '
                'Say which: args={"examples_attribute": ...}.'
            )
        if args["num_examples"] < 0:
            raise DefinitionError(f'"{self.name}": num_examples is {args["num_examples"]}; expected 0 or more.')
        if not seeded and EXAMPLES_HOLE not in args["attributes"] and EXAMPLES_HOLE in _holes(args["instruction"]):
            raise DefinitionError(
                f'"{self.name}": the instruction has the hole {{examples}}, but no examples were given. Give the '
                'inputs "examples" and "example_attributes", or the argument "examples".'
            )
        return args

    def _check_attributes(self, attributes: Mapping[str, Any]) -> None:
        if not attributes:
            raise DefinitionError(f'"{self.name}": there are no attributes. Without any, use DataFromPrompt.')
        for name, values in attributes.items():
            if isinstance(values, str) or not hasattr(values, "__iter__"):
                raise ArgumentTypeError(
                    f'"{self.name}": attribute "{name}" is {values!r}; expected a list of its values.'
                )
            if not list(values):
                raise DefinitionError(f'"{self.name}": attribute "{name}" has no values.')

    def _check_holes(self, instruction: str, attributes: Mapping[str, Any]) -> None:
        try:
            holes = _holes(instruction)
        except ValueError as error:
            raise DefinitionError(
                f'"{self.name}": the instruction\'s braces do not pair up ({error}). A brace that is no hole is '
                "written twice: {{ or }}."
            ) from error
        for hole in holes:
            if hole not in attributes and hole != EXAMPLES_HOLE:
                raise DefinitionError(
                    f'"{self.name}": the instruction has the hole {{{hole}}}, but there is no such attribute; there '
                    f"are: {', '.join(attributes)}.{did_you_mean(hole, attributes)} A brace that is no hole is written "
                    "twice."
                )
        unused = [name for name in attributes if name not in holes]
        if unused:
            raise DefinitionError(
                f'"{self.name}": the instruction does not use the attribute "{unused[0]}". Put {{{unused[0]}}} where '
                "its value belongs, or leave it out."
            )


class _Deck:
    """Texts by value, each value's in random order, dealt out in turn."""

    def __init__(self, groups: dict[Any, list[str]], seed: int | None) -> None:
        self._rng = random.Random(seed or 0)
        self._groups = groups
        self._left: dict[Any, list[str]] = {}

    def draw(self, value: Any, count: int) -> list[str]:
        """Returns up to `count` different texts of a value."""
        texts = self._groups[value]
        drawn: list[str] = []
        left = self._left.setdefault(value, [])
        for _ in range(min(count, len(texts))):
            if not left:
                # A new round starts without the texts that this draw holds already; they come with the next one.
                left.extend(text for text in texts if text not in drawn)
                self._rng.shuffle(left)
            if left:
                drawn.append(left.pop())
        return drawn


# Stands in the hole for examples until they are there; no text holds it.
_MARK = "\0examples\0"


def _filled(instruction: str, combination: dict[str, Any]) -> str:
    return instruction.format(**{EXAMPLES_HOLE: _MARK, **combination})


def _holes(instruction: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(instruction) if name is not None]
