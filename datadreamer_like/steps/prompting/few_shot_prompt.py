"""Few-shot prompting with fixed examples, or with those that are most similar to each input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError, EmptyDataset, ModelError
from datadreamer_like.graph.origin import From
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.embedders.embedder import Embedder
from datadreamer_like.models.retrievers.embedding_retriever import EmbeddingRetriever

from ..base.columns import columns_together
from ..base.row_answers import AnsweredRows
from ..retrieval.retrieve import retrieved
from .cell_text import cell_text
from .prompt_step import PromptStep, RowPrompt

# Between the input and the output of an example that becomes two messages; no text contains it.
_TURN = "\0"


class FewShotPrompt(PromptStep):
    """Shows an LLM examples of inputs and outputs, followed by each input.

    Inputs: `input_examples`, `output_examples`, `inputs`. Args: `input_label`, `output_label`, `max_new_tokens`,
    `instruction` (comes first), `sep`, `min_in_context_examples`, `max_in_context_examples`, `as_messages` (False), and
    those of `PromptStep`. Outputs: `inputs`, `prompts`, `generations`.

    With `as_messages=True` a prompt is a chat: the instruction is the system prompt, each example a message of the user
    and one of the assistant, without labels. What fits is counted as for a text.

    Examples are shown in order, as many as fit the model's context with `max_new_tokens` left for the answer. A row
    fails, and holds None, if `min_in_context_examples` (by default 1) do not fit; with 0 it is asked without examples.

    Example:
        >>> topics = FewShotPrompt(  # doctest: +SKIP
        ...     "Topics",
        ...     inputs={
        ...         "input_examples": gold.output["text"],
        ...         "output_examples": gold.output["topic"],
        ...         "inputs": rows.output["text"],
        ...     },
        ...     args={"llm": llm, "instruction": "Name the topic of each text."},
        ... )
    """

    result_version: ClassVar[int] = 3  # 3: at least one example
    whole_inputs: ClassVar[frozenset[str]] = frozenset({"input_examples", "output_examples"})

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("input_examples", help="Inputs of the examples.")
        self.register_input("output_examples", help="Outputs of the examples.")
        self.register_input("inputs", help="What is to be answered.")
        self.register_llm()
        self.register_format("\n", input_label="Input:", output_label="Output:")
        self.register_arg("instruction", required=False, type=str, help="Before the examples.")
        self.register_arg("min_in_context_examples", required=False, type=int, help="Fewest examples.")
        self.register_arg("max_in_context_examples", required=False, type=int, help="Most examples.")
        help = "Examples as messages of a chat, without labels."
        self.register_arg("as_messages", required=False, default=False, type=bool, help=help)
        self.register_output("inputs", help="The inputs.")
        self.register_prompt_outputs()

    def fingerprint_parts(self) -> dict[str, str]:
        """Leaves `as_messages` out unless it is given, so that earlier results are found."""
        parts = super().fingerprint_parts()
        if not self.args["as_messages"]:
            parts.pop("argument as_messages", None)
        return parts

    def num_prompts(self) -> int | None:
        """Returns the number of inputs."""
        return self._inputs["inputs"].num_rows

    def examples(self) -> tuple[list[str], list[str], list[int]]:
        """Returns the inputs, the texts in a prompt, and the positions in the columns of all complete examples."""
        pairs = enumerate(self.input_rows("input_examples", "output_examples"))
        whole = [
            (cell_text(given), cell_text(made), row)
            for row, (given, made) in pairs
            if given is not None and made is not None
        ]
        if not whole:
            raise EmptyDataset(f'"{self.name}": there are no examples. Give columns with at least one complete pair.')
        if len(whole) < (least := self.args["min_in_context_examples"] or 0):
            raise DefinitionError(
                f'"{self.name}": min_in_context_examples is {least}, and there are {len(whole)} complete examples. '
                "Give more, or lower it."
            )
        if self.args["as_messages"]:
            texts = [f"{given}{_TURN}{made}" for given, made, _ in whole]
        else:
            sep, labelled = self.args["sep"], self.labelled
            texts = [sep.join((labelled("input_label", g), labelled("output_label", made))) for g, made, _ in whole]
        return [given for given, _, _ in whole], texts, [row for _, _, row in whole]

    def input_batches(self) -> Iterator[Batch]:
        """Yields the inputs, each with the examples to show."""
        _, examples, positions = self.examples()
        for batch in columns_together({"inputs": self._inputs["inputs"]}, f'"{self.name}"'):
            size = len(batch["inputs"])
            yield {**batch, "texts": [examples] * size, "positions": [positions] * size}

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns each input after its examples, or the error of finding examples."""
        return [self._prompt(*row) for row in zip(batch["inputs"], batch["texts"], strict=True)]

    def shown(self, rows: AnsweredRows) -> list[list[int]]:
        """Returns the positions of the examples in each prompt."""
        if not self.args["as_messages"]:
            return super().shown(rows)
        turns = [sum(message["role"] == "assistant" for message in prompt or ()) for prompt in rows.values]
        return [list(positions[:count]) for positions, count in zip(rows.rows["positions"], turns, strict=True)]

    def origin(self, rows: AnsweredRows) -> Sequence[From]:
        """Returns the inputs' rows, and the examples that each prompt shows."""
        found = self.shown(rows)
        return [From("inputs"), *(From(name, found, role="example") for name in ("input_examples", "output_examples"))]

    def _prompt(self, value: Any, examples: list[str] | ModelError) -> RowPrompt:
        if value is None:
            return None
        if isinstance(examples, ModelError):
            return examples
        if self.args["as_messages"]:
            return self._chat(cell_text(value), examples)
        question = self.labelled("input_label", value)
        return self.fitted(
            # A blank line after the instruction, as in DataDreamer.
            beg_instruction=None if self.args["instruction"] is None else self.args["instruction"] + self.args["sep"],
            in_context_examples=examples,
            end_instruction=self.args["sep"].join(part for part in (question, self.args["output_label"]) if part),
            min_in_context_examples=self.args["min_in_context_examples"],
            max_in_context_examples=self.args["max_in_context_examples"],
        )

    def _chat(self, value: str, examples: list[str]) -> RowPrompt:
        limits = {name: self.args[name] for name in ("min_in_context_examples", "max_in_context_examples")}
        instruction = self.args["instruction"]
        text = self.fitted(beg_instruction=instruction, in_context_examples=examples, end_instruction=value, **limits)
        if not isinstance(text, str):
            return text
        messages = [{"role": "system", "content": instruction}] if instruction else []
        for example in examples[: text.count(_TURN)]:
            for role, content in zip(("user", "assistant"), example.split(_TURN), strict=True):
                messages.append({"role": role, "content": content})
        return [*messages, {"role": "user", "content": value}]


class FewShotPromptWithRetrieval(FewShotPrompt):
    """Shows an LLM the examples whose inputs are most similar to each input, then that input.

    Inputs and outputs are those of `FewShotPrompt`. Further args: `embedder`, which compares inputs, and `k`, the
    number of examples (5). The most similar come first, and are kept if not all fit.

    Example:
        >>> topics = FewShotPromptWithRetrieval(  # doctest: +SKIP
        ...     "Topics",
        ...     inputs={
        ...         "input_examples": gold.output["text"],
        ...         "output_examples": gold.output["topic"],
        ...         "inputs": rows.output["text"],
        ...     },
        ...     args={"llm": llm, "embedder": embedder, "k": 3},
        ... )
    """

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg("embedder", type=Embedder, help="The model that compares inputs.")
        self.register_arg("k", required=False, default=5, type=int, help="How many examples to take.")

    def input_batches(self) -> Iterator[Batch]:
        """Yields the inputs, each with its most similar examples."""
        corpus, examples, positions = self.examples()
        inputs = columns_together({"inputs": self._inputs["inputs"]}, f'"{self.name}"')
        retriever = EmbeddingRetriever(corpus, self.args["embedder"])
        for batch, texts, found in retrieved(inputs, "inputs", retriever, self.args["k"]):
            shown = [
                error if isinstance(error, ModelError) else [examples[index] for index in indices]
                for error, indices in zip(texts, found, strict=True)
            ]
            yield {**batch, "texts": shown, "positions": [[positions[index] for index in row] for row in found]}
