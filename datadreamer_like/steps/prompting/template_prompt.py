"""Prompts made of several columns by a template."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from datadreamer_like.errors import DefinitionError, did_you_mean
from datadreamer_like.graph.output import Batch

from ..base.registration import ANY_ARGUMENT
from .images import cells_together, check_takes_images, fingerprint_of_files, with_images
from .prompt_step import PromptStep, RowPrompt

if TYPE_CHECKING:
    from .template import PromptTemplate

_OWN = ("prompts", "generations")


class TemplatePrompt(PromptStep):
    r"""Fills a Jinja template with the columns of each row, and sends it.

    Inputs: any columns, by the names that the template uses. Args: `template`, `images` (names of inputs that hold
    images, for LLMs that take them; see `Prompt`), and those of `PromptStep`. Outputs: the inputs, `prompts`,
    `generations`.

    `template` is a text, or a list of chat messages whose contents are templates. It runs in Jinja's sandbox: it
    reaches the row's values only, and these are data, so `{{` in a cell is text. A row has no prompt, and holds None,
    if its template prints a missing value or nothing at all; `{% if notes %}` tests for a value. A row whose template
    cannot be filled (a missing key, a division by zero) fails.

    `{{ order.items }}` is the value of the key, `{{ order.items() }}` the method. What would make other prompts in each
    run is refused: draw it in a column, with `Sample`. Inputs that the template does not use are kept in the output,
    and `parse` finds them in its row.

    Example:
        >>> asked = TemplatePrompt(  # doctest: +SKIP
        ...     "Summaries",
        ...     inputs={"title": rows.output["title"], "body": rows.output["body"]},
        ...     args={"llm": llm, "template": "{{ title }}: {{ body }}\n\nSummarise this in one sentence."},
        ... )
    """

    result_version: ClassVar[int] = 2  # 2: keys of mappings before their methods

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input(ANY_ARGUMENT)
        self.register_llm()
        self.register_arg("template", type=(str, list, tuple), help="A Jinja template, or messages of templates.")
        help = "Names of inputs with images."
        self.register_arg("images", required=False, default=(), type=(list, tuple), help=help)
        self.register_output("*", help="The inputs.")
        self.register_prompt_outputs()

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        inputs = {"title": ["a cat", "two dogs"], "body": ["It sleeps.", "They {{ bark }}."]}
        return {"inputs": inputs, "args": {"template": "{{ title }}: {{ body }}"}}

    def configure(self) -> None:
        """Checks the template and the names of the inputs."""
        from .template import check_names

        where = f'"{self.name}"'
        for name in self._inputs:
            if name in _OWN:
                raise DefinitionError(f'{where}: the input "{name}" has the name of an output. Give it another one.')
        check_names(self._inputs, where)
        if not self._inputs and isinstance(self._args["template"], str):
            _ = self.compiled  # names the variable that has no input
            raise DefinitionError(f"{where}: there are no inputs. Use DataFromPrompt to send one text several times.")
        _ = self.compiled
        for name in self._args["images"]:
            if name not in self._inputs:
                raise DefinitionError(
                    f'{where}: images names "{name}", which is not an input; the inputs are: {", ".join(self._inputs)}.'
                    f"{did_you_mean(str(name), self._inputs)}"
                )
        if self._args["images"]:
            check_takes_images(self._args["llm"], self.name)
        self.replace_output("*", self._inputs)
        super().configure()

    def fingerprint_parts(self) -> dict[str, str]:
        """Adds the content of the files that are named as images."""
        given = [self._inputs[name] for name in self._args["images"]]
        return super().fingerprint_parts() | fingerprint_of_files(given)

    @cached_property
    def compiled(self) -> PromptTemplate:
        """The template, checked."""
        from .template import PromptTemplate

        return PromptTemplate(self._args["template"], self._inputs, f'"{self.name}"')

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "compiled"}

    def prompts(self, batch: Batch) -> Sequence[RowPrompt]:
        """Returns the filled template of each row."""
        names, fill = list(batch), self.compiled.prompt
        made = [fill(dict(zip(names, row, strict=True))) for row in zip(*batch.values(), strict=True)]
        if not self._args["images"]:
            return made
        images = cells_together([batch[name] for name in self._args["images"]])
        return [with_images(*row) for row in zip(made, images, strict=True)]
