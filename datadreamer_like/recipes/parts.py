"""What several recipes do: checks, making trainers, joining texts with labels, and measuring students."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, SessionError, did_you_mean
from datadreamer_like.evaluation.columns import check_column, check_lengths
from datadreamer_like.evaluation.labels import class_names, label_name
from datadreamer_like.graph import current_session
from datadreamer_like.graph.output import Column
from datadreamer_like.models import LLM
from datadreamer_like.models.llms.llm import overrides_only_run
from datadreamer_like.steps import Predict, Step, zipped
from datadreamer_like.steps.base.model_step import check_options as check_model_options
from datadreamer_like.trainers import Trainer
from datadreamer_like.trainers.training.hf import HFTrainer
from datadreamer_like.trainers.training.options import Training

logger = logging.getLogger("datadreamer_like")

MakeTrainer: TypeAlias = Callable[..., Trainer]
"""Makes an untrained trainer of a name: `partial(TrainHFClassifier, model_name=...)`, or a function of the name."""

VALIDATION = ("validation_input", "validation_output")


def check_recipe(recipe: object, name: str, trainer: object) -> None:
    """Refuses a recipe outside a session, or without a function that makes its trainers."""
    check_session(recipe, name)
    if isinstance(trainer, Trainer) or not callable(trainer):
        raise ArgumentTypeError(
            f'"{name}": trainer must be a function that makes a new trainer of a given name, not {trainer!r:.100}. '
            "Pass partial(TrainHFClassifier, model_name=...), or lambda name: TrainHFClassifier(name, ...)."
        )


def check_session(recipe: object, name: str) -> None:
    """Refuses a recipe outside a session."""
    if current_session() is None:
        raise SessionError(
            f'{type(recipe).__name__} "{name}" runs when it is created, and there is no session to save its results. '
            "Put it inside `with DataDreamer(folder):`."
        )


def check_llm(recipe: object, name: str, llm: object) -> None:
    """Refuses a recipe outside a session, or without an LLM."""
    check_session(recipe, name)
    if not isinstance(llm, LLM):
        raise ArgumentTypeError(f'"{name}": llm must be an LLM, not {llm!r:.100}. Pass OpenAI("..."), for example.')


def check_llm_options(recipe: Any, name: str, llm: LLM, options: Mapping[str, Any]) -> None:
    """Refuses options that neither a recipe nor its LLM has, before it does any work."""
    own = [each for each in inspect.signature(type(recipe)).parameters if each not in ("name", "options")]
    if not overrides_only_run(llm):
        check_model_options(name, own, options, llm, "LLM")


def check_texts(texts: object, what: str) -> None:
    """Refuses what is not a list of different texts, or is empty or has a blank text."""
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(each, str) for each in texts):
        raise ArgumentTypeError(f"{what} must be a list of texts, not {texts!r:.100}.")
    if not texts or len(set(texts)) < len(texts) or not all(text.strip() for text in texts):
        raise DefinitionError(f"{what} must be one or more different texts, none blank; got {list(texts)!r:.100}.")


def check_two(values: object, what: str) -> None:
    """Refuses what is not two values, before they are taken apart and checked."""
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise ArgumentTypeError(f"{what} must be two numbers, the first and the last, not {values!r:.100}.")


def check_pair(name: str, columns: Mapping[str, object]) -> dict[str, Column]:
    """Returns columns of equal length; see `check_column` and `check_lengths`."""
    checked = {argument: check_column(column, f'"{name}": {argument}') for argument, column in columns.items()}
    check_lengths(checked)
    return checked


def make_trainer(make: MakeTrainer, name: str, **more: Any) -> Any:
    """Returns a new trainer; `more` are arguments that the recipe decides."""
    if more:
        parameters = inspect.signature(make).parameters
        takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        if unknown := [argument for argument in more if argument not in parameters and not takes_any]:
            raise DefinitionError(
                f'"{name}": trainer must take {unknown[0]} too, which differs between trainers here. Pass the class '
                "with its other options: partial(TrainHFClassifier, device=...)."
            )
    made = make(name, **more)
    if not isinstance(made, Trainer):
        raise ArgumentTypeError(f'"{name}": trainer returned {made!r:.100}, which is not a trainer.')
    if made.manifest is not None:
        raise DefinitionError(f'"{name}": trainer returned "{made.name}", which is trained. Return a new one.')
    return made


def draws(trainer: Any) -> bool:
    """Whether the trainer has a seed."""
    parameters = inspect.signature(trainer.train).parameters
    return "seed" in parameters or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


def held_out_texts(texts: Iterable[object]) -> list[str]:
    """Returns the texts of validation rows, which no round of a recipe labels or learns from; missing ones are none."""
    return [text for text in texts if isinstance(text, str)]


def without_known(name: str, pool: Column, held_out: Iterable[object], seed: Iterable[object]) -> Column:
    """Returns a recipe's pool without the texts of its validation rows and of its seed; warns of how many there are.

    Raises:
        EmptyDataset: No text is left.
    """
    tests = frozenset(held_out_texts(held_out))
    labelled = frozenset(each for each in seed if isinstance(each, str)) - tests
    texts = [text if isinstance(text, str) else None for text in pool]
    of_tests, of_seed = (sum(text in group for text in texts) for group in (tests, labelled))
    if not of_tests + of_seed:
        return pool
    if of_tests + of_seed == len(texts):
        groups = [what for what, count in (("validation rows", of_tests), ("rows of the seed", of_seed)) if count]
        raise EmptyDataset(f'"{name}": all texts of the pool are also {" or ".join(groups)}. Pass others.')
    for count, whose, why in (
        (of_tests, "a validation row", "the metrics would be those of rows that the model has learned"),
        (of_seed, "a row of the seed", "they have a label already"),
    ):
        if count:
            logger.warning(
                "%s: %s of the %s rows of the pool have the text of %s. They are left out: %s.",
                name, f"{count:,}", f"{len(texts):,}", whose, why,
            )  # fmt: skip
    known = tests | labelled if of_seed else tests  # the fingerprint says what is left out
    left: Any = renamed(pool, "text").filter(lambda row: row["text"] not in known)
    return check_column(left.output["text"], "pool")


def with_seed(trainer: Any, options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Returns the options of `train` with a seed of its own for each `number`, if the trainer draws anything."""
    if not number or not draws(trainer):
        return dict(options)
    return {**options, "seed": options.get("seed", 42) + number}


def check_options(
    recipe: Any,
    trainer: Any,
    options: Mapping[str, Any],
    decided: Collection[str],
    train: Callable[..., Any] | None = None,
) -> None:
    """Checks what a recipe passes on to `train`, by default `trainer.train`, before it does any work.

    Raises:
        DefinitionError: The trainer has no such option, a value is out of range, or the recipe has `decided` it.
    """
    what, own = f'"{recipe.name}"', inspect.signature(type(recipe)).parameters
    taken = inspect.signature(train or trainer.train).parameters
    is_hf = isinstance(trainer, HFTrainer)
    fields = (
        [field.name for kind in (Training, trainer.arguments) for field in dataclasses.fields(kind)] if is_hf else []
    )
    for option in options:
        if option in decided:
            raise DefinitionError(f'{what} decides "{option}" itself. Leave it out.')
        known = [*taken, *fields]
        hint = did_you_mean(option, [*own, *known])
        if option not in known and (hint or not any(each.kind is each.VAR_KEYWORD for each in taken.values())):
            raise DefinitionError(f'{what} has no option "{option}", and its trainer neither.{hint}')
    if is_hf:
        passed_on = {option: value for option, value in options.items() if option in fields or option not in taken}
        Training.from_options(passed_on, what, trainer.arguments, trainer.decided)


def check_trainer(
    recipe: Any, make: MakeTrainer, name: str, options: Mapping[str, Any], decided: Collection[str] = (), **more: Any
) -> None:
    """Checks what a recipe passes on to `train`, with a trainer that it does not keep; see `check_options`."""
    made = make_trainer(make, name, **more)
    try:
        check_options(recipe, made, options, decided)
    finally:
        made.discard()


def count_rows(rows: Step) -> int:
    """Returns the number of rows of a saved step."""
    output: Any = rows.output
    return len(output)


def different_rows(
    rows: Sequence[dict[str, str]], tested: Iterable[object]
) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Returns rows with each `input` once, and none that is tested, so that no text is in two splits; and the counts.

    Of equal inputs, without regard to case and surrounding spaces, the last row is kept.
    """
    test = {str(text).strip().casefold() for text in tested}
    once = {row["input"].strip().casefold(): row for row in rows}
    kept = [row for text, row in once.items() if text not in test]
    return kept, {"repeated": len(rows) - len(once), "in the test": len(once) - len(kept)}


def labelled(texts: Column, labels: Column) -> Step:
    """Returns lazy rows with the columns `text` and `label`, without the rows that have no label."""
    joined = zipped(renamed(texts, "text"), renamed(labels, "label"))
    return joined.filter(has_label)


def named(rows: Step, labels: Column, where: str) -> Step:
    """Returns `labelled` rows whose labels are names of classes, as a classifier gives them."""
    naming = class_names(labels)
    return rows.map(lambda row: {"text": row["text"], "label": label_name(row["label"], where, 0, naming)})


def has_label(row: Mapping[str, Any]) -> bool:
    """Whether a row has a label."""
    return row["label"] is not None


def renamed(column: Column, name: str) -> Step:
    """Returns lazy rows with one column, under another name."""
    step: Any = column.step
    (own,) = column.column_names
    kept = step.select_columns([own])
    found: Step = kept if own == name else kept.rename_column(own, name)
    return found


def accuracy(name: str, model: Any, columns: Mapping[str, Column]) -> float:
    """Returns the share of right labels that a classifier gives, by a cached step of this name."""
    texts, labels = columns.values()
    said = Predict(name, inputs={"texts": texts}, args={"model": model})
    naming = class_names(labels)
    right: list[bool] = [
        label_name(label, "test_output", row, naming) == found
        for row, (label, found) in enumerate(zip(labels, said.output["labels"], strict=True))
    ]
    return sum(right) / len(right)
