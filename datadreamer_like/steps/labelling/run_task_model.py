"""Running a task model, such as a classifier, on texts."""

from __future__ import annotations

from datadreamer_like.models.task_models.task_model import TaskModel

from ..base.model_step import ModelStep


class RunTaskModel(ModelStep):
    """Runs a task model on texts.

    Inputs: `texts`. Args: `model`, `truncate` (False: a text that is too long fails its row), `lazy`, and the options
    of `model.run`. Outputs: `texts`, `results` (the model's results; None for a row that failed).

    Example:
        >>> texts = {"texts": rows.output["text"]}  # doctest: +SKIP
        >>> said = RunTaskModel("Said", inputs=texts, args={"model": classifier})  # doctest: +SKIP
    """

    model_arg = "model"
    answers_to = ("texts", "results")

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="The model's inputs.")
        self.register_model(TaskModel, "The task model.")
        self.register_arg("truncate", required=False, default=False, type=bool, help="Cut texts that are too long.")
        self.register_output("texts", help="The texts.")
        self.register_output("results", help="The model's result for each text.")
