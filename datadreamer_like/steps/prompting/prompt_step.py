"""The base of steps that ask an LLM: which arguments they share, what goes to `llm.run`, and how answers join rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError, PromptTooLong, did_you_mean
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.llms.generation import Generation, GenerationOptions
from datadreamer_like.models.llms.llm import LLM, overrides_only_run

from ..base.lazy_rows import LazyRowBatches
from ..base.row_answers import HOW_ASKED, Portion, answered, columns_together, num_rows_of
from ..base.step import Step

# What the step itself says to `llm.run`.
_OURS = {"return_generator", "total_num_prompts"}


class PromptStep(Step):
    """Base of steps that ask an LLM. A subclass registers its own names and writes `prompted`.

    All of them take the arguments `llm`, `post_process` (a function of each answer that is there), `lazy` (ask when the
    rows are asked for), and whatever options `llm.run` knows. A prompt that fails gives None in its row.
    """

    neutral_args: ClassVar[frozenset[str]] = Step.neutral_args | HOW_ASKED

    # Registered arguments that `llm.run` knows by the same name.
    run_args: ClassVar[tuple[str, ...]] = ("max_new_tokens", "temperature", "top_p", "seed")

    def prompted(self) -> Iterator[Portion]:
        """Yields prompts with the columns that stand beside the answers; to be written by a subclass."""
        raise NotImplementedError(f"{type(self).__name__} has no prompted().")

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns what decides the result; a context window that the script gave decides prompts, but no answer."""
        parts = super().fingerprint_parts()
        given = self.args["llm"].max_context_length
        return parts if given is None else {**parts, "argument llm: max_context_length": fingerprint(given)}

    def num_prompts(self) -> int | None:
        """Returns how many prompts there will be, where that is known."""
        return num_rows_of(self._inputs)

    def asked(self) -> Iterator[Batch]:
        """Yields the rows with their answers."""
        for answers, rows in answered(self.prompted(), self.generate):
            yield {**rows, "generations": answers}

    def run(self) -> LazyRowBatches:
        """Asks the LLM."""
        self.register_facts()
        return LazyRowBatches(self.asked, total_num_rows=self.num_prompts(), save=not self.args["lazy"])

    # For subclasses

    def register_llm(self) -> None:
        """Registers what every such step takes."""
        self.register_arg("llm", type=LLM, help="The LLM to ask.")
        self.register_arg(
            "post_process", required=False, help="A function of each generation; what it returns is kept instead."
        )
        self.register_arg(
            "lazy", required=False, default=False, type=bool, help="Ask when the rows are asked for, and keep nothing."
        )

    def register_prompt_outputs(self) -> None:
        """Registers the outputs `prompts` and `generations`."""
        self.register_output("prompts", help="The prompts as they were sent.")
        self.register_output("generations", help="The answers; lists where n > 1, None where there is no answer.")

    def register_facts(self) -> None:
        """Notes on the card what model and instruction made the rows."""
        llm = self.args["llm"]
        self.register_data_card(DataCardType.MODEL_NAME, llm.model_name or llm.display_name)
        self.register_data_card(DataCardType.MODEL_CARD, llm.model_card)
        self.register_data_card(DataCardType.LICENSE, llm.license)
        for citation in llm.citation or ():
            self.register_data_card(DataCardType.CITATION, citation)
        self.register_data_card(DataCardType.PROMPT, self.args.get("instruction"))

    def input_batches(self) -> Iterator[Batch]:
        """Yields batches of the step's inputs side by side."""
        return columns_together(self._inputs, f'"{self.name}"')

    def generate(self, prompts: Iterator[Any]) -> Iterator[Any]:
        """Yields the LLM's answers, post-processed."""
        answers: Iterable[Any] = self.args["llm"].run(
            prompts, return_generator=True, total_num_prompts=self.num_prompts(), **self.run_options()
        )
        process: Callable[[Any], Any] | None = self.args["post_process"]
        if process is None:
            yield from answers
            return
        for answer in answers:
            if isinstance(answer, list):
                yield [text if text is None else process(text) for text in answer]
            else:
                yield answer if answer is None else process(answer)

    def run_options(self) -> dict[str, Any]:
        """Returns what `llm.run` is given: arguments that are not the step's own, and those that both know."""
        own = set(self._arg_specs) - set(self.run_args)
        return {
            name: value
            for name, value in self._args.items()
            if name not in own and not (value is None and name in self._arg_specs)
        }

    def fitted(self, index: int, make: Callable[[], str]) -> str | None:
        """Returns the prompt that `make` gives, or notes why the row can have none.

        Args:
            index: Position of the row.
            make: Calls `llm.format_prompt`.
        """
        try:
            return make()
        except PromptTooLong as error:
            self.usage.row_failed(index, str(error))
            return None

    # Checking

    def _takes_extra(self, what: str) -> bool:
        return what == "argument"

    def _checked_args(self, given: dict[str, Any]) -> dict[str, Any]:
        args = super()._checked_args(given)
        llm = args["llm"]
        if overrides_only_run(llm):  # only it knows what it takes
            return args
        known = (set(GenerationOptions.__annotations__) | set(llm.extra_options)) - _OURS
        for name in given:
            if name not in self._arg_specs and name not in known:
                raise DefinitionError(
                    f'"{self.name}" has no argument "{name}", and {llm.display_name} has no such option.'
                    f"{did_you_mean(name, {*self._arg_specs, *known})} The step takes: {', '.join(self._arg_specs)}. "
                    f"The LLM takes: {', '.join(sorted(known - set(self._arg_specs)))}."
                )
        self._args = args
        Generation.from_options(self.run_options(), llm.extra_options)
        return args


def labelled(label: str, text: Any) -> str:
    """Puts a label before a text."""
    return f"{label} {text}" if label else str(text)
