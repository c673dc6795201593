"""Keeping the rows whose texts are valid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, StepOutputError
from datadreamer_like.graph.rows import Table

from .row_filter import Judged, RowFilter
from .validators import LengthBetween

Validator = Callable[[str], Any]


class Validate(RowFilter):
    """Keeps the rows whose texts pass all validators, and says why the others do not.

    Inputs: `inputs` (texts). Args: `validators` (a list), `drop`. Outputs: all columns of the step that the inputs come
    from.

    Validators are `ValidPython`, `ValidSQL`, `ValidJSON`, `MatchesPattern`, `LengthBetween`, `InLanguage`,
    `NoProfanity`, `NoPII`, or functions of a text that return None or True if it is valid, and else a reason or False.
    `step.rejected` has the rows that do not pass, with all reasons. A missing text is rejected. With `drop=False` all
    rows are kept, with the column `reason`.

    Example:
        >>> checks = [ValidJSON(schema), LengthBetween(5, 200, "words")]  # doctest: +SKIP
        >>> valid = Validate("Valid", {"inputs": rows.output["text"]}, {"validators": checks})  # doctest: +SKIP
        >>> valid.rejected.output["reason"]  # doctest: +SKIP
    """

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg("validators", type=list, help="What each text must pass.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"inputs": ["one two", "one"]}, "args": {"validators": [LengthBetween(2)]}}

    def configure(self) -> None:
        """Checks the validators."""
        super().configure()
        if not self.args["validators"]:
            raise DefinitionError(f'"{self.name}": argument "validators" is empty. Give one or more.')
        for place, validator in enumerate(self.args["validators"]):
            if not callable(validator) or isinstance(validator, type):
                advice = f" Make one of the class: {validator.__name__}()." if isinstance(validator, type) else ""
                raise ArgumentTypeError(
                    f'"{self.name}": validators[{place}] is {validator!r:.100}; expected a validator such as '
                    f"ValidJSON(), or a function of a text.{advice}"
                )

    def judge(self, table: Table) -> Judged:
        """Calls the validators on each text."""
        reasons: list[str | None] = []
        counts: Counter[str] = Counter()
        for row, text in enumerate(self.texts(table)):
            found = [("missing", "missing")]
            if text is not None:
                said = [(_name(each), self._reason(each, text, row)) for each in self.args["validators"]]
                found = [(name, reason) for name, reason in said if reason]
            counts.update(name for name, _ in found)
            reasons.append("; ".join(reason for _, reason in found) or None)
        is_rejected = np.array([reason is not None for reason in reasons], dtype=bool)
        return Judged(is_rejected, {"reason": pa.array(reasons, pa.string())}, counts)

    def _reason(self, validator: Validator, text: str, row: int) -> str | None:
        name = _name(validator)
        try:
            found = validator(text)
        except Exception as error:
            error.add_note(f'"{self.name}": the validator {name} was given row {row} (counted from 0).')
            raise
        if found is None or isinstance(found, str):
            return found or None
        if isinstance(found, bool | np.bool_):
            return None if found else f"fails {name}"
        raise StepOutputError(
            f'"{self.name}": the validator {name} returned {found!r:.100} for row {row}; expected None or True for a '
            "valid text, and a reason or False for another."
        )


def _name(validator: Validator) -> str:
    return str(getattr(validator, "__name__", type(validator).__name__))
