"""DistilBERT: its triple loss, and its start from alternating layers of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertForMaskedLM

from datadreamer_like.errors import DefinitionError, MethodMisfit, check_number, check_sequence, with_article
from datadreamer_like.kernels.divergences import check_temperature

from .factored import fused_loss
from .hidden_states import HiddenStates
from .losses import divergence
from .objectives import TeacherObjective, label_loss
from .outputs import Batch, Outputs, WeightedMean, counted, logits_of, number_of_labels, number_of_positions
from .teacher import Teacher


@dataclass(frozen=True)
class DistilBERT(TeacherObjective):
    """DistilBERT's triple loss: soft targets, masked language modelling, and the cosine of the last hidden states.

    Sanh et al. 2019, arXiv:1910.01108: `5 T² KL(q_T ‖ p_T) + 2 CE(masked tokens) + 1 (1 - cos(h, h'))`, in which the
    first and the last term are means over all tokens that are not padding, and the second over the masked ones. Student
    and teacher read the same masked texts, see `TrainHFMaskedLM`. The usual start is `distilbert_student(teacher)`.

    Attributes:
        temperature: T, above 0.
        weights: Weights of the three terms, as in the authors' code.

    Example:
        `TrainHFMaskedLM("Small", folder).train(texts, validation_texts, objective=DistilBERT(teacher))`
    """

    temperature: float = 2.0
    weights: tuple[float, float, float] = (5.0, 2.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        terms = "three numbers, for soft targets, masked language modelling and hidden states"
        check_sequence(self.weights, "weights", terms)
        for place, weight in enumerate(self.weights):
            check_number(weight, f"weights[{place}]")
        if len(self.weights) != 3 or not any(self.weights):
            raise DefinitionError(f"weights are {self.weights!r}; pass {terms}, not all of them 0.")

    @property
    def fits(self) -> frozenset[str]:
        """Masked language models."""
        return frozenset({"masked"})

    @property
    def wants(self) -> frozenset[str]:
        """Logits and hidden states."""
        return frozenset({"logits", "hidden_states"})

    @property
    def needs_labels(self) -> bool:
        """Always true: the masked tokens."""
        return True

    @property
    def takes_factors(self) -> bool:
        """True, unless a subclass has another loss."""
        return type(self).loss is DistilBERT.loss and type(self).means is DistilBERT.means

    def modules(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module | None:
        """Returns a projection of the last hidden states if their sizes differ, as in `HiddenStates`."""
        return HiddenStates(self.teacher, distance="cosine").modules(student, teacher)

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the weighted sum of the three terms."""
        return torch.stack([term.value for term in self.means(student, teacher, batch, modules)]).sum()

    def means(
        self,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        modules: nn.Module | None = None,
        *,
        all_labelled: bool = False,
    ) -> list[WeightedMean]:
        """Returns the three terms, weighted, with the numbers of all tokens, of the masked ones and of all tokens."""
        soft = fused_loss(student, teacher, batch, temperature=self.temperature)
        if soft is None:
            ours, theirs = logits_of(student, "student"), logits_of(teacher, "teacher")
            soft = divergence(ours, theirs, "forward_kl", self.temperature, mask=counted(batch))
        last = [len(each.hidden_states or ()) - 1 for each in (student, teacher) if each is not None]
        cosine = HiddenStates(self.teacher, distance="cosine", layers={max(last[0], 0): max(last[1], 0)})
        tokens = number_of_positions(batch)
        terms = (
            (soft, tokens),
            (label_loss(student, batch), number_of_labels(batch)),
            (cosine.loss(student, teacher, batch, modules), tokens),
        )
        return [WeightedMean(weight * term, total) for weight, (term, total) in zip(self.weights, terms, strict=True)]


def distilbert_student(teacher: Teacher, to: str | Path, layers: int | Sequence[int] | None = None) -> Path:
    """Writes a DistilBERT model that starts from layers of a BERT teacher, with its tokenizer, and returns the folder.

    Sanh et al. 2019, arXiv:1910.01108: half of the layers, without the pooler and the token-type embeddings. The
    embedding of the first token type, which all tokens of one text have, is added to those of the positions, so that
    with all layers the student is the teacher. The head of masked language modelling is the teacher's, or a new one
    (drawn with a fixed seed) if it has none.

    Args:
        teacher: A BERT model and its tokenizer, with any head.
        to: Folder to write, which trainers take as `model_name`; files in it are replaced.
        layers: Number of layers, spread evenly from the first to the last one, such as 0, 2, 4, 7, 9, 11 of 12; or
            their indices from 0. None for half of them.

    Raises:
        MethodMisfit: The teacher is not a BERT model.
        DefinitionError: The layers do not exist, or are not in order.

    Example:
        `start = distilbert_student(TrainedModel("bert-base-uncased"), to="start")`
    """
    model: Any = teacher.model
    bert, config = getattr(model, "bert", model), model.config
    if config.model_type != "bert" or config.is_decoder:
        raise MethodMisfit(
            f"A DistilBERT student starts from a BERT encoder, and the teacher is {with_article(type(model))}. "
            "Remove layers of other models with pruning.Layers."
        )
    chosen = _chosen(layers, config.num_hidden_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student: Any = DistilBertForMaskedLM(
            DistilBertConfig(
                vocab_size=config.vocab_size, max_position_embeddings=config.max_position_embeddings,
                n_layers=len(chosen), n_heads=config.num_attention_heads, dim=config.hidden_size,
                hidden_dim=config.intermediate_size, dropout=config.hidden_dropout_prob,
                attention_dropout=config.attention_probs_dropout_prob, activation=config.hidden_act,
                initializer_range=config.initializer_range, pad_token_id=config.pad_token_id,
            )
        )  # fmt: skip
    theirs, own = bert.embeddings, student.distilbert.embeddings
    pairs = [(theirs.word_embeddings, own.word_embeddings), (theirs.LayerNorm, own.LayerNorm)]
    for index, layer in enumerate(chosen):
        block, copy = bert.encoder.layer[layer], student.distilbert.transformer.layer[index]
        attention = block.attention.self
        pairs += [
            (attention.query, copy.attention.q_lin), (attention.key, copy.attention.k_lin),
            (attention.value, copy.attention.v_lin), (block.attention.output.dense, copy.attention.out_lin),
            (block.attention.output.LayerNorm, copy.sa_layer_norm), (block.intermediate.dense, copy.ffn.lin1),
            (block.output.dense, copy.ffn.lin2), (block.output.LayerNorm, copy.output_layer_norm),
        ]  # fmt: skip
    head = getattr(getattr(model, "cls", None), "predictions", None)
    if head is not None:
        pairs += [(head.transform.dense, student.vocab_transform), (head.transform.LayerNorm, student.vocab_layer_norm)]
    with torch.no_grad():
        for source, target in pairs:
            target.load_state_dict(source.state_dict())
        one_text = theirs.token_type_embeddings.weight[0]
        own.position_embeddings.weight.copy_(theirs.position_embeddings.weight + one_text)
        if head is not None:
            student.vocab_projector.bias.copy_(head.decoder.bias)
            student.vocab_projector.weight.copy_(head.decoder.weight)
    folder = Path(to).expanduser()
    student.to(torch.float32).save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)
    return folder


def _chosen(layers: int | Sequence[int] | None, depth: int) -> list[int]:
    count = max(1, depth // 2) if layers is None else layers
    if isinstance(count, int):
        if not 1 <= count <= depth:
            raise DefinitionError(f"layers is {count}; the teacher has {depth}, so it must be from 1 to {depth}.")
        # Half of a step is rounded up.
        return [int(index * (depth - 1) / max(1, count - 1) + 0.5) for index in range(count)]
    chosen = list(count)
    if not chosen or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < depth:
        raise DefinitionError(f"layers are {chosen}; they must be in order, each once, from 0 to {depth - 1}.")
    return chosen
