"""The base of trainers of embedders: the student, its loss, and the model in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack, cast

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import DefinitionError, MethodMisfit, check_number, require_extra
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.task import Task
from datadreamer_like.evaluation.tasks.texts import Texts
from datadreamer_like.graph.positions import by_position
from datadreamer_like.models.llms.chat_template import AUTO
from datadreamer_like.models.trained.hf_source import hf_source, loading
from datadreamer_like.models.trained.model_files import write_card
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.storage.folders import system_errors

from .devices import training_device
from .embedding_teachers import embeddings, margin_targets, principal_directions, vector_targets
from .hf import HFTrainer
from .loop import Fit, Run
from .options import HFOptions, Training
from .saved import check_same_logits

require_extra("embed", "torch", "sentence_transformers", what="Training an embedder")

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Normalize  # noqa: E402

from .sentence_loop import fit_embedder  # noqa: E402
from .sentence_losses import evaluator_for, loss_of  # noqa: E402
from .sentence_student import cut_layers, load_student  # noqa: E402

if TYPE_CHECKING:
    from transformers import TrainingArguments

_NODE = {"force": False, "verbose": None, "log_level": None}
_SEVERAL_DEVICES = dict.fromkeys(("distributed_config", "fsdp", "fsdp_config"), AUTO)
_BY_POSITION = {"trust_remote_code": False, "device": None, "dtype": None, "peft_config": None}
_CITATION = """@inproceedings{reimers2019sentence,
  title={Sentence-{BERT}: Sentence Embeddings using Siamese {BERT}-Networks},
  author={Reimers, Nils and Gurevych, Iryna},
  booktitle={Proceedings of the 2019 Conference on Empirical Methods in Natural Language Processing},
  year={2019}
}"""


class EmbedderTrainer(HFTrainer):
    """Base of trainers of embedders; a subclass names the columns and calls `run_kind`."""

    hub_task: ClassVar[str | None] = "sentence-similarity"
    arguments: ClassVar[type[TrainingArguments]] = SentenceTransformerTrainingArguments
    decided: ClassVar = {"prompts", "batch_sampler", "multi_dataset_batch_sampler", "router_mapping"}
    papers: ClassVar[Sequence[str]] = (_CITATION,)
    _how: Mapping[str, Any] = {}

    @by_position({**_BY_POSITION, **_SEVERAL_DEVICES, **_NODE})
    def __init__(
        self, name: str, model_name: Any, *, layers: int | Sequence[int] | None = None, **options: Unpack[HFOptions]
    ) -> None:
        super().__init__(name, model_name, **options)
        self.layers = layers if layers is None or isinstance(layers, int) else tuple(layers)

    def run_kind(
        self, kind: str, columns: dict[str, Any], options: Any, how: dict[str, Any], teacher: Any = None
    ) -> Self:
        """Finds the model for the arguments of a method, or trains it.

        `how` are the method's own arguments, for `loss_of`; `teacher` is the teacher as it was given.
        """
        dims = how.get("matryoshka_dims")
        if dims is not None:
            how["matryoshka_dims"] = dims = sorted(dims, reverse=True) if isinstance(dims, Sequence) else [dims]
            for size in dims or [None]:
                check_number(size, f'"{self.name}": each of matryoshka_dims', 1, whole=True)
        self._how = {"kind": kind, **how, "layers": self.layers}
        # A trainer as a teacher is a parent; its embedder is fingerprinted by its files.
        lineage = {"taught by": teacher} if hasattr(teacher, "node") or hasattr(teacher, "manifest") else {}
        return self.run_training(columns, options, own={**self._how, **lineage})

    # What the base asks for

    def make_task(
        self, config: PretrainedConfig, tokenizer: Tokenizer, columns: Columns, training: Training, objective: Objective
    ) -> Texts:
        """Returns the task of the columns, and loads the student, whose limit of tokens it has."""
        self._student = student = self._start()
        tokenizer.model_max_length = min(
            student.max_seq_length or tokenizer.model_max_length, tokenizer.model_max_length
        )
        length = min(training.max_length or tokenizer.model_max_length, tokenizer.model_max_length)
        kind, targets = self._how["kind"], None
        size = int(student.get_embedding_dimension() or 0)
        if max(self._how.get("matryoshka_dims") or [0]) > size:
            raise DefinitionError(
                f'"{self.name}": matryoshka_dims are {self._how["matryoshka_dims"]}, but an embedding has {size} '
                "numbers. Choose sizes up to that."
            )
        self._projection = None
        if kind == "teacher":
            targets = self._vector_targets(size, columns)
        elif kind == "margins":
            self._check_scale(student)
            targets = margin_targets(self._how["teacher"])
        self._make_evaluator = partial(evaluator_for, kind, columns["validation"], training.batch_size)
        scores = "labels" if kind == "labeled pairs" else ""
        alike = kind in ("teacher", "margins")
        return Texts(tokenizer, length, training.truncate, scores=scores, targets=targets, alike=alike)

    def _start(self) -> SentenceTransformer:
        """Returns the student to start from, which has only some layers where `layers` says so."""
        options = self.load_options()
        if self.layers is None:
            with loading(self._origin, weights=True):
                return load_student(self.source, options)
        # Codes are not cut, so the layers are, before the others are quantized.
        quantization = options.pop("quantization_config", None)
        try:
            with loading(self._origin, weights=True):
                whole = load_student(self.source, options)
            student = cut_layers(whole, self.layers)
        except (MethodMisfit, DefinitionError) as error:
            raise type(error)(f'"{self.name}": layers={self.layers} cannot be kept: {error}') from error
        if quantization is None:
            return student
        folder = self.scratch / "cut"
        with system_errors():
            student.save_pretrained(str(folder), create_model_card=False)
        return load_student(str(folder), {**options, "quantization_config": quantization})

    def _vector_targets(self, size: int, columns: Columns) -> Any:
        embedder, reduction = self._how["teacher"], self._how["reduction"]
        theirs = embedder.dims
        if theirs == size and reduction != "pca":
            return vector_targets(embedder, None)
        if reduction == "projection" or (reduction is AUTO and size > theirs):
            self._projection = theirs
            return vector_targets(embedder, None)
        if size > theirs:
            raise DefinitionError(
                f'"{self.name}": reduction="pca" reduces the teacher\'s embeddings to the student\'s size, but they '
                f'have {theirs} numbers and the student\'s {size}. Pass reduction="projection".'
            )
        (texts,) = columns["train"].values()
        return vector_targets(embedder, principal_directions(embeddings(embedder, texts.values()), size))

    def _check_scale(self, student: SentenceTransformer) -> None:
        if self._how["scale"] == 1 and any(isinstance(module, Normalize) for module in student):
            raise DefinitionError(
                f'"{self.name}": the student\'s embeddings have length 1, so its margins lie between -2 and 2, and '
                "those of a cross-encoder's scores do not. Pass a scale, such as scale=20.0, or a student without "
                "Normalize."
            )

    def load_model(self, config: PretrainedConfig, task: Task, options: dict[str, Any]) -> PreTrainedModel:
        """Returns the student that `make_task` loaded."""
        return cast("PreTrainedModel", self._student)

    def auto_class(self, config: PretrainedConfig) -> Any:
        """Returns the transformers class of the model inside the embedder."""
        return transformers.AutoModel

    def fit(self, run: Run) -> Fit:
        """Trains `run.model` with the loop of sentence-transformers."""
        teacher: Any = self._how.get("teacher")
        if teacher is not None:
            teacher.unload_model()  # its answers are stored

        self._loss = loss_of(self._how, run.model, self._projection)
        return fit_embedder(run, self._loss, self._make_evaluator())

    def save(self, model: Any, task: Task, validation: Examples, folder: Path) -> None:
        """Saves the embedder as sentence-transformers does, and checks that it loads as the same one."""
        model.tokenizer.model_max_length = task.tokenizer.model_max_length
        with system_errors():
            model.save_pretrained(str(folder), create_model_card=False)
        write_card(folder, self.card)
        batch = task.collate([validation[row] for row in range(min(8, len(validation)))])
        inputs = {name.removeprefix("text0_"): part for name, part in batch.items() if name.startswith("text0_")}
        with torch.no_grad():
            expected, found = (
                each({**inputs})["sentence_embedding"]
                for each in (model.eval(), SentenceTransformer(str(folder), device="cpu").eval())
            )
        check_same_logits(expected, found, TrainedModel(folder))
        del self._student

    def fill_card(self, metrics: Mapping[str, float], objective: Objective | None) -> None:
        """Records the origin of the model, the method and the metrics on the card."""
        super().fill_card(metrics, objective)
        card = self.card
        card.facts["Method"] = f"sentence-transformers' {type(self._loss).__name__} on {self._how['kind']}"
        if "teacher" in self._how:
            card.register("Model Name", self._how["teacher"].model_name)
        card.register("Citation Information", getattr(self._loss, "citation", "").strip() or None)

    # The result

    def publish_to_hf_hub(  # type: ignore[override]  # DataDreamer takes no branch here
        self,
        repo_id: str,
        private: bool = False,
        token: str | None = None,
        adapter_only: bool = False,
        is_synthetic: bool | None = None,
        *,
        branch: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Publishes the embedder, or only its adapter, for sentence-transformers; see `HFTrainer.publish_to_hf_hub`."""
        options = {"task": self.hub_task, **kwargs}
        return super().publish_to_hf_hub(repo_id, branch, private, token, adapter_only, is_synthetic, **options)

    def adapter(self) -> TrainedModel:
        """Returns the adapter alone; see `HFTrainer.adapter`. One on some layers of a model has no base to load."""
        self.adapter_options(self.trained.config)
        return super().adapter()

    def adapter_options(self, config: PretrainedConfig) -> dict[str, Any]:
        """Returns arguments for the adapter's base; `DefinitionError` if that is not a whole model."""
        if self.layers is not None:
            raise DefinitionError(
                f'"{self.name}": the adapter was trained on layers={self.layers} of {self.source}, and is wrong on the '
                "whole model. Leave adapter_only out to pass on the merged embedder; or save cut_layers(...) of the "
                "model to a folder, and train from that."
            )
        return super().adapter_options(config)

    @cached_property
    def _loaded(self) -> SentenceTransformer:
        device = str(training_device(self.device))
        options: dict[str, Any] = {} if self.dtype is None else {"model_kwargs": {"dtype": self.dtype}}
        with loading(hf_source(self.path), weights=True):
            return SentenceTransformer(self.path, device=device, **options).eval()

    @property
    def model(self) -> SentenceTransformer:  # type: ignore[override]
        """The finished `SentenceTransformer`, loaded lazily; `trained.model` is the transformers model inside."""
        _ = self.trained
        return self._loaded

    def unload_model(self) -> None:
        """Frees the model's memory; it is loaded again when needed."""
        self.__dict__.pop("_loaded", None)
        super().unload_model()
