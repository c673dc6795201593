"""Registration of a step's inputs, arguments and outputs in `setup`, and checks of the values that it is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, UnknownColumn, did_you_mean
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.output import Column, OutputDatasetColumn, OutputIterableDatasetColumn

RegistrationT = TypeVar("RegistrationT", bound="Registration")

_EXAMPLES: dict[Any, Any] = {str: "Is it good?", int: 2, float: 0.5, bool: True}


@dataclass(frozen=True)
class Registered:
    """A registered input, argument or output.

    Attributes:
        name: Its name.
        required: Whether it must be given.
        default: Value of an argument that is not given.
        help: Description, for `help`.
        default_help: Description of the default.
        type: Class or classes that an argument must be an instance of; None for any.
    """

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
        for title, specs in (
            ("inputs", known._input_specs),
            ("args", known._arg_specs),
            ("outputs", known._output_specs),
        ):
            lines.append(f"{title}:")
            lines.extend(f"  {_help_line(spec, title == 'args')}" for spec in specs.values())
            if not specs:
                lines.append("  none")
        return "\n".join(lines)


class Registration:
    """The inputs, arguments and outputs of a step."""

    name: str
    _input_specs: dict[str, Registered]
    _arg_specs: dict[str, Registered]
    _output_specs: dict[str, Registered]
    _card_facts: list[tuple[str, Any]]
    _closed: bool

    takes_options: ClassVar[bool] = False
    """Whether arguments that are not registered are accepted, such as options of a model's `run`."""

    def setup(self) -> None:
        """Registers inputs, arguments and outputs; a subclass writes this."""

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest useful arguments of the step, for tests and documentation.

        A step whose required arguments are only texts, numbers and models inherits this.

        Args:
            folder: An empty folder for files that the example reads.

        Returns:
            The constructor's arguments other than the name. Columns are lists of values, and models are left out of
            `args`.
        """
        step = registered(cls)
        inputs = {name: ["one text", "another text"] for name, spec in step._input_specs.items() if spec.required}
        args = {
            name: _EXAMPLES[spec.type]
            for name, spec in step._arg_specs.items()
            if spec.required and spec.type in _EXAMPLES
        }
        return {"inputs": inputs, "args": args}

    def configure(self) -> None:
        """Called after inputs and arguments are checked one by one, and before outputs are renamed.

        A subclass rejects invalid combinations here, and may register outputs that depend on the arguments.
        """

    def register_input(self, input_column_name: str, required: bool = True, help: str | None = None) -> None:
        """Registers an input column.

        Args:
            input_column_name: Name of the input.
            required: Whether it must be given.
            help: Description.
        """
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
        """Registers an argument.

        Args:
            arg_name: Name of the argument.
            required: Whether it must be given.
            default: Its value if it is not given.
            help: Description.
            default_help: Description of the default.
            type: A class or tuple of classes that the value must be an instance of; an optional argument may also be
                None.
        """
        spec = Registered(arg_name, required, default, help, default_help, type)
        self._register(self._arg_specs, spec, "argument")

    def register_output(self, output_column_name: str, help: str | None = None) -> None:
        """Registers an output column.

        Args:
            output_column_name: Name of the column.
            help: Description.
        """
        self._register(self._output_specs, Registered(output_column_name, help=help), "output")

    def replace_output(self, output_column_name: str, names: Iterable[str]) -> None:
        """Replaces an output by others, in `configure`, where the names depend on the inputs.

        Args:
            output_column_name: A registered output.
            names: Names of the new outputs.

        Raises:
            DefinitionError: A name is already registered.
        """
        specs = dict(self._output_specs)
        self._output_specs.clear()
        for name, spec in specs.items():
            for new in names if name == output_column_name else (name,):
                self._register(self._output_specs, replace(spec, name=new), "output")

    def register_data_card(self, data_card_type: str, data_card: Any) -> None:
        """Adds a fact to the step's card.

        Args:
            data_card_type: A heading of `DataCardType`, or any other.
            data_card: The fact.
        """
        self._card_facts.append((data_card_type, data_card))

    def register_model_facts(self, model: Any) -> None:
        """Adds a model's name, card, licence and citations to the step's card."""
        self.register_data_card(DataCardType.MODEL_NAME, getattr(model, "model_name", None) or model.display_name)
        self.register_data_card(DataCardType.MODEL_CARD, model.model_card)
        self.register_data_card(DataCardType.LICENSE, model.license)
        for citation in model.citation or ():
            self.register_data_card(DataCardType.CITATION, citation)

    help = HelpText()
    """Inputs, arguments and outputs as text; of the class and of a step."""

    def accept(self, inputs: dict[str, Column], args: dict[str, Any], outputs: dict[str, str]) -> None:
        """Checks and stores the script's values, and calls `configure`.

        Args:
            inputs: Columns by input name.
            args: Values by argument name.
            outputs: New names by output name.

        Raises:
            DefinitionError: A name is unknown or missing.
            ArgumentTypeError: An input is not a column, or an argument has the wrong type.
        """
        self._inputs = _checked_inputs(self, inputs)
        self._args = _checked_args(self, args)
        self._closed = False
        self.configure()
        self._closed = True
        self._renamed = _checked_outputs(self, outputs)

    def _register(self, specs: dict[str, Registered], spec: Registered, what: str) -> None:
        if getattr(self, "_closed", True):
            raise DefinitionError(
                f'"{self.name}" is already constructed. Register its {what} "{spec.name}" in setup().'
            )
        if spec.name in specs:
            raise DefinitionError(f'{type(self).__name__} registers the {what} "{spec.name}" twice.')
        specs[spec.name] = spec


def registered(cls: type[RegistrationT]) -> RegistrationT:
    """Returns an instance of a step's class that has only run `setup`."""
    probe = cls.__new__(cls)
    probe.name = cls.__name__
    run_setup(probe)
    return probe


def run_setup(step: Registration) -> None:
    """Calls a step's `setup`, in which names can be registered."""
    step._input_specs, step._arg_specs, step._output_specs = {}, {}, {}
    step._card_facts = []
    step._closed = False
    step.setup()
    step._closed = True


def _checked_inputs(step: Registration, given: dict[str, Column]) -> dict[str, Column]:
    _check_names(step, given, step._input_specs, "input")
    checked: dict[str, Column] = {}
    for name, column in given.items():
        value: Any = column
        if value is None and not step._input_specs[name].required:
            continue
        if not isinstance(value, OutputDatasetColumn | OutputIterableDatasetColumn):
            raise ArgumentTypeError(
                f'"{step.name}": input "{name}" is {_described(value)}; expected a column of a step, '
                'like other_step.output["text"].'
            )
        checked[name] = value
    return checked


def _checked_args(step: Registration, given: dict[str, Any]) -> dict[str, Any]:
    _check_names(step, given, step._arg_specs, "argument")
    for name, value in given.items():
        spec = step._arg_specs.get(name)
        if spec is None or spec.type is None or (value is None and not spec.required):
            continue
        if not _is_instance(value, spec.type):
            raise ArgumentTypeError(
                f'"{step.name}": argument "{name}" is {_described(value)}; expected {_type_names(spec.type)}.'
            )
    return {**{name: spec.default for name, spec in step._arg_specs.items()}, **given}


def _checked_outputs(step: Registration, given: dict[str, str]) -> dict[str, str]:
    if not step._output_specs:
        raise DefinitionError(f"{type(step).__name__} registers no output. Call self.register_output() in setup().")
    _check_names(step, given, step._output_specs, "output", check_missing=False)
    names = [given.get(name, name) for name in step._output_specs]
    if len(set(names)) < len(names):
        raise DefinitionError(f'"{step.name}": two outputs get the same name: {", ".join(names)}.')
    return {name: new for name, new in given.items() if new != name}


def _check_names(
    step: Registration, given: dict[str, Any], specs: dict[str, Registered], what: str, check_missing: bool = True
) -> None:
    if not isinstance(given, dict):
        raise ArgumentTypeError(f'"{step.name}": {what}s must be a dictionary; got {_described(given)}.')
    for name in given:
        if name not in specs and not (what == "argument" and step.takes_options):
            offered = ", ".join(specs) or "none"
            message = f'"{step.name}" has no {what} "{name}"; it takes: {offered}.{did_you_mean(name, specs)}'
            raise UnknownColumn(message) if what == "output" else DefinitionError(message)
    missing = [name for name, spec in specs.items() if spec.required and name not in given]
    if missing and check_missing:
        listed = ", ".join(f'"{name}"' for name in missing)
        raise DefinitionError(
            f'"{step.name}" lacks the {what}{"s" if len(missing) > 1 else ""} {listed}. '
            f"Give {what}s as {what if what != 'argument' else 'arg'}s={{{listed.split(',')[0]}: ...}}."
        )


def _help_line(spec: Registered, is_argument: bool) -> str:
    line = spec.name
    if not spec.required:
        default = spec.default_help or (repr(spec.default) if is_argument else None)
        line += f" (optional, default: {default})" if default else " (optional)"
    return f"{line}: {spec.help}" if spec.help else line


def _described(value: Any) -> str:
    shown = repr(value)
    return f"{shown if len(shown) < 60 else shown[:57] + '...'} ({type(value).__name__})"


def _is_instance(value: Any, kind: Any) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds or object in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _type_names(kind: Any) -> str:
    return " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
