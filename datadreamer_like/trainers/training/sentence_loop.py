"""The loop of sentence-transformers over our batches, resumable after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datadreamer_like.errors import require_extra

from .loop import Fit, LoopOverExamples, Run, fit

require_extra("embed", "torch", "sentence_transformers", what="Training an embedder")

from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments  # noqa: E402

_WEIGHTS_NAME = "weights.safetensors"


def fit_embedder(run: Run, loss: nn.Module, evaluator: Any = None) -> Fit:
    """Trains `run.model`, a `SentenceTransformer`, in place by a loss of sentence-transformers; see `fit`.

    The loss is one for `run.model`; its own weights, such as a projection, are trained and checkpointed too. The
    `evaluator` adds figures to those of each epoch.
    """
    if run.training.neftune_noise_alpha is not None:  # transformers looks for the embeddings to add noise to
        inner = getattr(run.model, "base_model", run.model)
        embeddings = run.model.transformers_model.get_input_embeddings
        getattr(inner, "model", inner).get_input_embeddings = embeddings
    run.model.to(run.device)

    def make_loop(**options: Any) -> LoopOverExamples:
        return _SentenceLoop(loss=loss, evaluator=evaluator, **options)

    return fit(run, make_loop, SentenceTransformerTrainingArguments)


class _SentenceLoop(LoopOverExamples, SentenceTransformerTrainer):
    """The library's loop over tokenized rows; a checkpoint has the trained weights of the loss and its model."""

    def __init__(self, run: Run, **options: Any) -> None:
        super().__init__(
            run,
            train_dataset=run.train,
            eval_dataset=run.validation,
            data_collator=run.task.collate,
            processing_class=run.task.tokenizer,
            **options,
        )

    def preprocess_dataset(self, dataset: Any = None, dataset_name: str | None = None) -> Any:
        """Returns the rows as they are: they are tokenized already."""
        return dataset

    def add_model_card_callback(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the trainer writes the card."""

    def validation_figures(self, sizes: Sequence[int]) -> dict[str, float]:
        """Returns the evaluator's figures."""
        return {} if self.evaluator is None else dict(self.evaluator(self.model))  # type: ignore[arg-type]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_trained(cast("nn.Module", self.loss)), str(folder / _WEIGHTS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        loss = cast("nn.Module", self.loss)
        loss.load_state_dict(load_file(str(Path(resume_from_checkpoint) / _WEIGHTS_NAME)), strict=False)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


def _trained(loss: nn.Module) -> dict[str, Tensor]:
    """Returns the weights that training changes, each once: no codes below an adapter, which could not be loaded."""
    buffers = {name: buffer for name, buffer in loss.named_buffers() if name in loss.state_dict()}
    trained = {name: weight.detach() for name, weight in loss.named_parameters() if weight.requires_grad}
    return {name: each.contiguous() for name, each in {**buffers, **trained}.items()}
