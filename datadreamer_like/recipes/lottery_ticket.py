"""Lottery tickets: sparse networks that train from their first weights as well as the dense one."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, ClassVar

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_number, with_article
from datadreamer_like.formats.modules import linears
from datadreamer_like.graph.output import Column
from datadreamer_like.pruning import Magnitude
from datadreamer_like.pruning.magnitude import Scope
from datadreamer_like.report import Table, TableColumn
from datadreamer_like.stages import FreshWeights, Prune, Rewind
from datadreamer_like.trainers.training.callbacks import StopAfter
from datadreamer_like.trainers.training.hf import HFTrainer

from .parts import MakeTrainer, check_options, check_recipe, make_trainer

logger = logging.getLogger("datadreamer_like")

_MODEL, _LEFT = TableColumn("model", "model", align="left"), TableColumn("left", "weights left", "%", ".1f", 100)
_METRICS = (
    TableColumn("accuracy", "accuracy", "%", ".1f", 100),
    TableColumn("macro_f1", "macro-F1", "%", ".1f", 100),
    TableColumn("f1", "F1", "%", ".1f", 100),
    TableColumn("loss", "loss", "", ".3f"),
    TableColumn("perplexity", "perplexity", "", ".2f"),
    TableColumn("cosine_mrr@10", "MRR@10", "%", ".1f", 100),
    TableColumn("cosine_accuracy", "triplets right", "%", ".1f", 100),
    TableColumn("spearman_cosine", "rank correlation", "%", ".1f", 100),
)
_ARGUMENTS = ("train_input", "train_output", "validation_input", "validation_output")


class LotteryTicket:
    """Finds a sparse network in a dense one that trains as well from the same start: train, prune, rewind, repeat.

    Frankle and Carbin 2018, "The Lottery Ticket Hypothesis", arXiv:1803.03635. Each round removes a share of the
    weights that are left, the smallest ones of the trained network, resets the others to the values they had at the
    start, and trains again. All that is made is a cached node.

    A large network needs a start that is a few steps into the training, `rewind_step` (Frankle et al. 2019,
    arXiv:1903.01611). The start is saved as a model, head included; every training begins at its weights, with the
    whole learning rate schedule.

    Args:
        name: Prefix of the names of all nodes.
        trainer: Makes an untrained trainer of a name, and takes `model_name`: `partial(TrainHFClassifier,
            model_name=...)`, or another trainer of transformers models.
        train_input, train_output, validation_input, validation_output: Columns, see the trainer's `train`; None for
            those that it does not take, as the outputs of `TrainHFMaskedLM`. Those of `TrainSentenceTransformer` are
            given by their own names, such as `train_anchors=...`.
        rounds: Number of prunings.
        share: Share of the weights left that each round removes; of the output layer's, half of it.
        scope: "layer" removes the share from each weight matrix, as in the paper's small networks; "model" compares all
            of them, as in its deep ones.
        rewind_step: Optimizer steps from the model that the trainer names to the start; 0 for that model itself.
        controls: Whether to train the last ticket's two controls too: the same zeros with weights drawn anew, and as
            many zeros in random places with the first weights. A winning ticket is better than both.
        **options: Options of the trainer's `train`, and columns of other names, for all trainings.

    Attributes:
        start: The start, a trained node of `rewind_step` steps.
        dense: The dense network, trained.
        tickets: The rewound sparse models, one a round, as `Rewind` nodes.
        students: The tickets, trained.
        controls: The trained controls, by name; empty without them.

    Raises:
        SessionError: There is no session.
        ArgumentTypeError, DefinitionError: `trainer` makes no new trainer, or an option makes no sense.
        DataDreamerError: See the trainer's `train`.

    Example:
        >>> found = LotteryTicket(  # doctest: +SKIP
        ...     "Topics", partial(TrainHFClassifier, model_name=encoder), *columns, rounds=5, learning_rate=5e-5,
        ... )
        >>> found.students[-1].export(to="ticket")  # doctest: +SKIP
        >>> LotteryTicket(  # doctest: +SKIP
        ...     "Embedder", partial(TrainSentenceTransformer, model_name=encoder), train_anchors=questions,
        ...     train_positives=answers, validation_anchors=others, validation_positives=their_answers,
        ... )
    """

    papers = ("1803.03635", "1903.01611")
    result_version: ClassVar[int] = 1

    def __init__(
        self,
        name: str,
        trainer: MakeTrainer,
        train_input: Column | None = None,
        train_output: Column | None = None,
        validation_input: Column | None = None,
        validation_output: Column | None = None,
        *,
        rounds: int = 5,
        share: float = 0.2,
        scope: Scope = "layer",
        rewind_step: int = 0,
        controls: bool = True,
        **options: Any,
    ) -> None:
        check_recipe(self, name, trainer)
        check_number(rounds, f'"{name}": rounds', 1, whole=True)
        check_number(rewind_step, f'"{name}": rewind_step', 0, whole=True)
        check_number(share, f'"{name}": share', 0, over=True)
        if share >= 1:
            raise DefinitionError(f'"{name}": share is {share}; it is removed in each round, so it must be under 1.')
        Magnitude(share, scope)  # refuses an unknown scope before any work
        self.name, self._share = name, share
        columns = dict(zip(_ARGUMENTS, (train_input, train_output, validation_input, validation_output), strict=True))
        columns |= {argument: value for argument, value in options.items() if isinstance(value, Column)}
        options = {argument: value for argument, value in options.items() if argument not in columns}

        def train(title: str, start: Any = None, **changed: Any) -> Any:
            named = {} if start is None else {"model_name": start}
            made = make_trainer(trainer, f"{name}, {title}", **named)
            if not isinstance(made, HFTrainer):
                raise ArgumentTypeError(
                    f'"{name}": trainer makes {with_article(type(made))}, which has no transformers model to rewind. '
                    "Pass one that trains the weights of a model, such as TrainHFClassifier."
                )
            run = made.train_on([argument for argument, column in columns.items() if column is not None])
            taken = _taken(self, made, run, columns)
            check_options(self, made, options, (), run)
            return run(**taken, **{**options, **changed})

        # A learning rate of 0 for one step leaves the weights as they are, and saves them with the trainer's new head.
        own = options.get("callbacks") or ()
        callbacks = [*(own if isinstance(own, list | tuple) else [own]), StopAfter(max(1, rewind_step))]
        rate = {} if rewind_step else {"learning_rate": 0.0}
        self.start: Any = train("start", callbacks=callbacks, **rate)
        self.dense: Any = train("dense", self.start)
        self.tickets: list[Rewind] = []
        self.students: list[Any] = []
        # An embedder's own model has the transformer inside, which has no output layer.
        model = self.start.trained.model
        output = list(linears(model))[-1:] if self.start.model is model else []
        self.start.unload_model()
        pruned: Any = None
        for number in range(1, rounds + 1):
            title = f"{name}, round {number}"
            of_output = 1 - (1 - share / 2) ** number
            others = tuple((f"{layer}.weight", of_output) for layer in output)
            method = Magnitude(1 - (1 - share) ** number, scope, others=others)
            pruned = Prune(f"{title}, pruned", (self.students or [self.dense])[-1], method)
            self.tickets.append(Rewind(f"{title}, ticket", pruned, to=self.start))
            self.students.append(train(f"round {number}", self.tickets[-1]))
        self.controls: dict[str, Any] = {}
        if controls:
            fresh = FreshWeights(f"{name}, fresh weights", self.start, seed=1)
            starts = {
                "reinitialized": Rewind(f"{name}, ticket with fresh weights", pruned, to=fresh),
                "random mask": Rewind(f"{name}, ticket with a random mask", pruned, to=self.start, random_mask=1),
            }
            self.controls = {title: train(title, start) for title, start in starts.items()}
        logger.info("%s", self.table)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments but name and trainer, for tests and documentation; columns are lists."""
        texts, labels = ["a cat", "a dog", "the cat", "the dog"], ["cat", "dog"] * 2
        columns = {"train_input": texts, "train_output": labels, "validation_input": texts, "validation_output": labels}
        return {**columns, "rounds": 1, "controls": False, "epochs": 1, "batch_size": 2, "learning_rate": 1e-3}

    @property
    def table(self) -> Table:
        """The weights left in the pruned matrices but the output layer, and the metrics on the validation rows."""
        models = {"dense": (self.dense, 0)}
        models |= {f"round {number}": (each, number) for number, each in enumerate(self.students, start=1)}
        models |= {title: (each, len(self.students)) for title, each in self.controls.items()}
        rows = [
            {"model": title, "left": (1 - self._share) ** number, **each.metrics}
            for title, (each, number) in models.items()
        ]
        metrics = [column for column in _METRICS if any(column.key in row for row in rows)]
        return Table([_MODEL, _LEFT, *metrics], rows, title=self.name)

    def __str__(self) -> str:
        return str(self.table)


def _taken(
    recipe: LotteryTicket, trainer: HFTrainer, train: Callable[..., Any], columns: dict[str, Column | None]
) -> dict[str, Column | None]:
    """The columns that a trainer's method takes, by argument; refuses one too many, and a trainer of others."""
    takes = inspect.signature(train).parameters
    known = [name for name in takes if name.startswith(("train_", "validation_"))]
    if unknown := [name for name in known if name not in columns]:
        raise DefinitionError(
            f'"{recipe.name}": trainer makes {with_article(type(trainer))}, which trains on {", ".join(known)}. Pass '
            f"{', '.join(unknown)} too."
        )
    if extra := [name for name, column in columns.items() if column is not None and name not in takes]:
        raise DefinitionError(
            f'"{recipe.name}": {type(trainer).__name__} takes no {" or ".join(extra)}. Leave it out, or pass None.'
        )
    return {name: columns[name] for name in known}
