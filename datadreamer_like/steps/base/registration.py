"""Registration of a step's inputs, arguments and outputs in `setup`, and checks of the values that it is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, LateRegistration, UnknownColumn, did_you_mean
from datadreamer_like.graph.card import DataCardType as DataCardType
from datadreamer_like.graph.output import Column, OutputDatasetColumn, OutputIterableDatasetColumn

RegistrationT = TypeVar("RegistrationT", bound="Registration")

ANY_ARGUMENT = "**kwargs"
"""Name under which a step registers that it takes arguments, or inputs, of any name."""

_EXAMPLES: dict[Any, Any] = {str: "Is it good?", int: 2, float: 0.5, bool: True}


@dataclass(frozen=True)
class Registered:
    """A registered input, argument or output; see `Registration.register_arg`."""

    name: str
    required: bool = True
    default: Any = None
    help: str | None = None
    default_help: str | None = None
    type: Any = None


class HelpText:
    """Descriptor of a step and its class: a text that lists inputs, arguments and outputs."""

    def __get__(self, step: Registration | None, cls: type[Registration]) -> str:
        known = registered(cls) if step is None else step
        doc = (cls.__doc__ or "").strip().splitlines()
        lines = [f"{cls.__name__}: {doc[0] if doc else ''}".rstrip(": "), ""]
        all_specs = {"inputs": known._input_specs, "args": known._arg_specs, "outputs": known._output_specs}
        for title, specs in all_specs.items():
            lines.append(f"{title}:")
            for spec in specs.values():
                default = spec.default_help or (repr(spec.default) if title == "args" else None)
                optional = f" (optional, default: {default})" if default else " (optional)"
                line = f"  {spec.name}{'' if spec.required else optional}"
                lines.append(f"{line}: {spec.help}" if spec.help else line)
            if title == "inputs" and known.takes_inputs:
                lines.append("  any columns, by names of your own")
            elif not specs:
                lines.append("  none")
        return "\n".join(lines)


class Registration:
    """The inputs, arguments and outputs of a step."""

    name: str
    _input_specs: dict[str, Registered]
    _arg_specs: dict[str, Registered]
    _output_specs: dict[str, Registered]
    _card_facts: list[tuple[str, Any]]
    _given_as_none: list[str]
    _renamed: dict[str, str]
    _closed: bool = True

    takes_options: bool = False
    """Whether arguments that are not registered are accepted, such as options of a model's `run`."""

    takes_inputs: bool = False
    """Whether inputs that are not registered are accepted, such as one for each voter or placeholder of a template."""

    whole_inputs: ClassVar[frozenset[str]] = frozenset()
    """Inputs that `preview` does not cut, as their rows are not those of the output: examples, or a test set."""

    makes_steps: ClassVar[bool] = False
    """Whether its `run` makes other steps, which a preview leaves whole where they have inputs: those are cut."""

    help = HelpText()
    """Inputs, arguments and outputs as text; of the class and of a step."""

    def setup(self) -> None:
        """Registers inputs, arguments and outputs; a subclass writes this."""

    def configure(self) -> None:
        """Called after inputs and arguments are checked one by one, and before outputs are renamed.

        A subclass rejects invalid combinations here, and may register outputs that depend on the arguments.
        """

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest useful arguments of the step, for tests and documentation.

        A step whose required arguments are only texts, numbers and models inherits this. The result holds the
        constructor's arguments other than the name; columns are lists of values, and models are left out of `args`.
        Files that the example reads are written into `folder`, which is empty.
        """
        step = registered(cls)
        inputs = {name: ["one text", "another text"] for name, spec in step._input_specs.items() if spec.required}
        required = {name: spec.type for name, spec in step._arg_specs.items() if spec.required}
        return {"inputs": inputs, "args": {n: _EXAMPLES[kind] for n, kind in required.items() if kind in _EXAMPLES}}

    @property
    def planned_columns(self) -> list[str] | None:
        """Names of the output columns before the step has run; None if it learns them by running."""
        return None if "*" in self._output_specs else [self._renamed.get(name, name) for name in self._output_specs]

    def register_input(self, input_column_name: str, required: bool = True, help: str | None = None) -> None:
        """Registers an input column; `help` describes it.

        The name "**kwargs" stands for any further inputs; it is not one itself.
        """
        if input_column_name == ANY_ARGUMENT:
            self.takes_inputs = True
            return
        self._register(self._input_specs, Registered(input_column_name, required, help=help), "input")

    def register_arg(
        self,
        arg_name: str,
        required: bool = True,
        default: Any = None,
        help: str | None = None,
        default_help: str | None = None,
        type: Any = None,
    ) -> None:
        """Registers an argument; `help` describes it, and `default_help` its default.

        `type` is a class or tuple of classes that the value must be an instance of; an optional argument may also be
        None. The name "**kwargs" stands for any further arguments; it is not one itself.
        """
        if arg_name == ANY_ARGUMENT:
            self.takes_options = True
            return
        spec = Registered(arg_name, required, default, help, default_help, type)
        self._register(self._arg_specs, spec, "argument")

    def register_output(self, output_column_name: str, help: str | None = None) -> None:
        """Registers an output column; `help` describes it."""
        self._register(self._output_specs, Registered(output_column_name, help=help), "output")

    def replace_output(self, output_column_name: str, names: Iterable[str]) -> None:
        """Replaces an output by others, in `configure`, where their names depend on the inputs."""
        specs = dict(self._output_specs)
        self._output_specs.clear()
        for name, spec in specs.items():
            for new in names if name == output_column_name else (name,):
                self._register(self._output_specs, replace(spec, name=new), "output")

    def register_data_card(self, data_card_type: str, data_card: Any) -> None:
        """Adds a fact to the step's card, under a heading of `DataCardType` or any other."""
        if not isinstance(data_card_type, str):
            raise ArgumentTypeError(
                f"{type(self).__name__}: the heading of a fact must be a text, such as DataCardType.URL, not "
                f"{data_card_type!r}."
            )
        self._card_facts.append((data_card_type, data_card))

    def register_model_facts(self, model: Any) -> None:
        """Adds a model's name, card, licence and citations to the step's card."""
        self.register_data_card(DataCardType.MODEL_NAME, getattr(model, "model_name", None) or model.display_name)
        self.register_data_card(DataCardType.MODEL_CARD, model.model_card)
        self.register_data_card(DataCardType.LICENSE, model.license)
        for citation in model.citation or ():
            self.register_data_card(DataCardType.CITATION, citation)

    def _register(self, specs: dict[str, Registered], spec: Registered, what: str) -> None:
        if self._closed:
            raise LateRegistration(
                f'"{self.name}" is already constructed. Register its {what} "{spec.name}" in setup().'
            )
        if not isinstance(spec.name, str):
            raise ArgumentTypeError(f"{type(self).__name__}: the name of an {what} must be a text, not {spec.name!r}.")
        # The later one counts, so that a subclass can change a default after super().setup().
        specs[spec.name] = spec

    def run_setup(self) -> None:
        """Calls `setup`, in which names can be registered."""
        if type(self).setup is Registration.setup:
            raise NotImplementedError(f"{type(self).__name__} has no setup(). Register its inputs and outputs there.")
        self._input_specs, self._arg_specs, self._output_specs = {}, {}, {}
        self._card_facts = []
        self._closed = False
        self.setup()
        self._closed = True

    def accept(self, inputs: dict[str, Column], args: dict[str, Any], outputs: dict[str, str]) -> None:
        """Checks and stores the script's values by their names in the step, and calls `configure`."""
        self._inputs = self._checked_inputs(inputs)
        self._args = self._checked_args(args)
        self._closed = False
        self.configure()
        self._closed = True
        self._renamed = self._checked_outputs(outputs)

    def _checked_inputs(self, given: dict[str, Any]) -> dict[str, Column]:
        if self.takes_inputs and isinstance(given, dict):
            self._input_specs |= {name: Registered(name) for name in given if name not in self._input_specs}
        self._check_names(given, self._input_specs, "input")
        checked: dict[str, Column] = {}
        self._given_as_none = [name for name, column in given.items() if column is None]
        for name, column in given.items():
            if isinstance(column, OutputDatasetColumn | OutputIterableDatasetColumn):
                checked[name] = column
            elif column is not None or self._input_specs[name].required:
                raise ArgumentTypeError(
                    f'"{self.name}": input "{name}" is {_described(column)}; expected a column of a step, '
                    'like other_step.output["text"].'
                )
        return checked

    def _checked_args(self, given: dict[str, Any]) -> dict[str, Any]:
        self._check_names(given, self._arg_specs, "argument")
        for name, spec in self._arg_specs.items():
            value = given.get(name)
            if name not in given or spec.type is None or (value is None and not spec.required):
                continue
            kinds = spec.type if isinstance(spec.type, tuple) else (spec.type,)
            fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
            if not fits or (isinstance(value, bool) and not {bool, object} & set(kinds)):
                expected = " or ".join(kind.__name__ for kind in kinds)
                raise ArgumentTypeError(
                    f'"{self.name}": argument "{name}" is {_described(value)}; expected {expected}.'
                )
        return {**{name: spec.default for name, spec in self._arg_specs.items()}, **given}

    def _checked_outputs(self, given: dict[str, str]) -> dict[str, str]:
        if not self._output_specs:
            raise DefinitionError(f"{type(self).__name__} registers no output. Call self.register_output() in setup().")
        self._check_names(given, self._output_specs, "output")
        names = [given.get(name, name) for name in self._output_specs]
        if len(set(names)) < len(names):
            raise DefinitionError(f'"{self.name}": two outputs get the same name: {", ".join(names)}.')
        return {name: new for name, new in given.items() if new != name}

    def _check_names(self, given: dict[str, Any], specs: dict[str, Registered], what: str) -> None:
        if not isinstance(given, dict):
            raise ArgumentTypeError(f'"{self.name}": {what}s must be a dictionary; got {_described(given)}.')
        for name in given:
            if name not in specs and not (what == "argument" and self.takes_options):
                offered = ", ".join(specs) or "none"
                message = f'"{self.name}" has no {what} "{name}"; it takes: {offered}.{did_you_mean(name, specs)}'
                raise UnknownColumn(message) if what == "output" else DefinitionError(message)
        missing = [f'"{name}"' for name, spec in specs.items() if spec.required and name not in given]
        if missing and what != "output":
            raise DefinitionError(
                f'"{self.name}" lacks the {what}{"s" if len(missing) > 1 else ""} {", ".join(missing)}. '
                f"Give {what}s as {what if what != 'argument' else 'arg'}s={{{missing[0]}: ...}}."
            )


def registered(cls: type[RegistrationT]) -> RegistrationT:
    """Returns an instance of a step's class that has only run `setup`."""
    probe = cls.__new__(cls)
    probe.name = cls.__name__
    probe.run_setup()
    return probe


def _described(value: Any) -> str:
    shown = repr(value)
    return f"{shown if len(shown) < 60 else shown[:57] + '...'} ({type(value).__name__})"
