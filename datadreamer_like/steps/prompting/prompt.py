"""Sending existing prompts unchanged."""

from __future__ import annotations

from collections.abc import Sequence

from datadreamer_like.errors import ModelError
from datadreamer_like.graph.output import Batch

from .images import check_takes_images, fingerprint_of_files, with_images
from .prompt_step import PromptStep, RowPrompt


class Prompt(PromptStep):
    """Sends each prompt to an LLM.

    Inputs: `prompts` (texts, or lists of chat messages), `images` (optional: an image or a list of them for each
    prompt, as PIL images, bytes or paths), `tools` (optional: those of each prompt, as a list or its JSON). Args: those
    of `PromptStep`. Outputs: `prompts`, `generations`, with tools also `tool_calls`.

    With images, prompts are chats; each image is a part of the last message, before its text.

    Example:
        >>> asked = Prompt(  # doctest: +SKIP
        ...     "Answers", inputs={"prompts": rows.output["text"]}, args={"llm": llm, "temperature": 0.0}
        ... )
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("prompts", help="The prompts.")
        self.register_input("images", required=False, help="Images for each prompt.")
        self.register_input("tools", required=False, help="Tools for each prompt.")
        self.register_llm()
        self.register_prompt_outputs()

    def configure(self) -> None:
        """Refuses images for an LLM that takes none."""
        super().configure()
        if "images" in self._inputs:
            check_takes_images(self._args["llm"], self.name)

    def fingerprint_parts(self) -> dict[str, str]:
        """Adds the content of the files that are named as images."""
        given = [column for name, column in self._inputs.items() if name == "images"]
        return super().fingerprint_parts() | fingerprint_of_files(given)

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the prompts."""
        given = [_empty() if prompt == [] else prompt for prompt in batch["prompts"]]
        return [*map(with_images, given, batch["images"])] if "images" in batch else given


def _empty() -> ModelError:
    return ModelError("The prompt is an empty list, but a chat has at least one message.")
