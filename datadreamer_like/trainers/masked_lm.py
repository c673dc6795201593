"""Pre-training and distilling an encoder by masked language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, Unpack

import transformers
from transformers import PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.tasks.masked import MaskedLM
from datadreamer_like.evaluation.tasks.task import row_limit
from datadreamer_like.graph.output import Column

from .training.hf import HFTrainer
from .training.options import Training, TrainingOptions, takes_training_options
from .training.teaching import check_objective

_CITATION = """@inproceedings{devlin2019bert,
  title={BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding},
  author={Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina},
  booktitle={Proceedings of NAACL-HLT},
  year={2019}
}"""


class TrainHFMaskedLM(HFTrainer):
    """Trains an encoder on texts by masked language modelling: hidden tokens are predicted from the others.

    Devlin et al. 2018, arXiv:1810.04805: of the hidden tokens four in five are masked, one in ten is replaced by a
    random one, and the rest are left. Other tokens are hidden in each epoch (Liu et al. 2019, arXiv:1907.11692), but
    always the same ones of the validation rows. It adapts an encoder to a domain, and with `DistilBERT(teacher)` makes
    a smaller one, which is fine-tuned by `TrainHFClassifier`.

    Args:
        model_name: Id on the Hub, folder, trainer, stage or `TrainedModel` to start from.
        **options: See `HFOptions`; further ones go to `from_pretrained`.

    Example:
        >>> trainer = TrainHFMaskedLM("Domain", model_name="distilbert-base-uncased")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_input=train.output["text"], validation_input=validation.output["text"], learning_rate=5e-5
        ... )
    """

    several_devices = True
    papers: ClassVar[Sequence[str]] = (_CITATION,)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        texts = ["the cat sat on a mat", "the dog ran to a tree"]
        columns = {"train_input": texts, "validation_input": texts}
        return {**columns, "mask_probability": 0.5, "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}

    @takes_training_options
    def train(
        self,
        train_input: Column,
        validation_input: Column,
        *,
        mask_probability: float = 0.15,
        objective: Objective | None = None,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the model, or loads the cached result, and returns the trainer.

        The columns are texts; the validation rows choose the best epoch. `mask_probability`, over 0 and up to 1, is
        the probability that a token is hidden. An objective of None is the cross-entropy of the hidden tokens; a
        teacher reads the same masked texts, and must have the student's vocabulary. For the options see
        `TrainingOptions`.

        Raises:
            DataError: A value is missing.
            MethodMisfit: The model is not an encoder with a mask token, or the objective is for other trainers.
            DataDreamerError: See `TrainHFClassifier.train`.
        """
        share = mask_probability
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise DefinitionError(
                f'"{self.name}".train: mask_probability is {share!r}; it is the share of tokens to predict, so it must '
                "be over 0 and at most 1."
            )
        columns = {"train_input": train_input, "validation_input": validation_input}
        self._share = float(share)
        return self.run_training(columns, options, check_objective(objective), {"mask_probability": self._share})

    def make_task(
        self, config: PretrainedConfig, tokenizer: Tokenizer, columns: Columns, training: Training, objective: Objective
    ) -> MaskedLM:
        """Returns a masked language modelling task."""
        if type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING or tokenizer.mask_token_id is None:
            raise MethodMisfit(
                f'"{self.name}": {self.source} ({config.model_type}) cannot predict masked tokens: it is not an '
                "encoder, or its tokenizer has no mask token. Start from an encoder such as BERT, or train it with "
                "TrainHFFineTune."
            )
        return MaskedLM(tokenizer, row_limit(config, tokenizer, training.max_length), training.truncate, self._share)

    def auto_class(self, config: PretrainedConfig) -> Any:
        """Returns the transformers class that loads the model."""
        return transformers.AutoModelForMaskedLM
