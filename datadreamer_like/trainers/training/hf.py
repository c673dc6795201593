"""The base of trainers on transformers: the model to start from, adapters, teachers, and the training run."""

from __future__ import annotations

import logging
import shutil
import warnings
from abc import abstractmethod
from collections.abc import Collection, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, Unpack, cast

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments
from transformers import PreTrainedTokenizerBase as Tokenizer

from datadreamer_like.distillation import Objective, Supervised
from datadreamer_like.errors import DefinitionError, check_flag, require_extra
from datadreamer_like.evaluation.columns import Columns, check_columns
from datadreamer_like.evaluation.tasks.examples import Examples, Paired
from datadreamer_like.evaluation.tasks.task import Task, check_student
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.own_changes import watching
from datadreamer_like.graph.results import Kept
from datadreamer_like.models.exports.report import graph_misfit
from datadreamer_like.models.llms.chat_template import AUTO
from datadreamer_like.models.quiet import quiet
from datadreamer_like.models.trained.hf_source import (
    ADAPTER_FOLDER,
    HOW_FETCHED,
    HFSource,
    forget_gguf,
    hf_source,
    loading,
)
from datadreamer_like.models.trained.model_node import as_trained_model
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import masks, reapply

from ..trainer import Trainer
from . import adapters
from .adapter_readme import write_adapter_readme
from .curves import read_curves, write_curves
from .devices import check_devices, named_devices, training_device
from .loop import Fit, Run, fit
from .options import HFOptions, Training, a_dtype, check_configs, refuse_unknown_options, takes_trainer_options
from .saved import check_saved, on_cpu
from .seeds import seeded
from .several_devices import fit_on_devices
from .signals import unload_teacher
from .teaching import check_mapped_layers, itself, node_of, prepare_teacher
from .writing import reading_order, with_written_answers

logger = logging.getLogger("datadreamer_like")


class HFTrainer(Trainer):
    """Base of trainers that fine-tune a transformers model: a subclass writes `train`, `make_task` and `auto_class`."""

    arguments: ClassVar[type[TrainingArguments]] = TrainingArguments
    """Class of the loop's arguments, whose fields are options of `train` too."""
    decided: ClassVar[Collection[str]] = ()
    """Fields of it that this trainer sets itself, in addition to those that all trainers set."""
    several_devices: ClassVar[bool] = False
    """Whether `device` may be a list: `fit` is that of this class, and a step needs no more than its rows."""
    hub_task: ClassVar[str | None] = None
    """The Hub's name of the model's task, where its config does not say it."""

    @takes_trainer_options
    def __init__(self, name: str, model_name: Any, **options: Unpack[HFOptions]) -> None:
        given: dict[str, Any] = {**options}
        node_options = ("force", "verbose", "log_level", "progress_interval")
        super().__init__(name, **{key: given.pop(key) for key in node_options if key in given})
        self.model_name = model_name
        self.revision = given.pop("revision", None)
        self.trust_remote_code = given.pop("trust_remote_code", False)
        self.devices = named_devices(given.pop("device", None), type(self), self.several_devices)
        self.device = next(iter(self.devices), None)
        self.dtype = a_dtype(given.pop("dtype", None))
        self.quantization_config = given.pop("quantization_config", None)
        self.peft_config = given.pop("peft_config", None)
        qlora = given.pop("qlora", False)
        check_flag(qlora, f"{type(self).__name__}: qlora")
        if qlora:
            require_extra("qlora", "bitsandbytes", "peft", what=f"{type(self).__name__} with qlora=True")
            quantized, adapter = adapters.qlora_configs(self.dtype)
            self.quantization_config = self.quantization_config or quantized
            self.peft_config = self.peft_config or adapter
        for option in ("distributed_config", "fsdp", "fsdp_config"):
            if given.pop(option, AUTO) not in (AUTO, None, False, "", {}):
                raise DefinitionError(
                    f"{type(self).__name__}: {option} splits a model over devices; here each holds the whole model. "
                    'Leave it out, and name several devices by device=["cuda:0", "cuda:1"].'
                )
        self.further = given
        if given and isinstance(model_name, str | Path):  # a trainer may not be trained yet
            _ = self._origin  # refuses unknown ones
        check_configs(type(self).__name__, self.quantization_config, self.peft_config)

    # Implemented or extended by subclasses.

    @abstractmethod
    def make_task(
        self, config: PretrainedConfig, tokenizer: Tokenizer, columns: Columns, training: Training, objective: Objective
    ) -> Task:
        """Returns the task for the columns of a call.

        `config` and `tokenizer` are those of the model to start from. The task's tokenizer is saved with the trained
        model; it may be a changed or another one.
        """

    @abstractmethod
    def auto_class(self, config: PretrainedConfig) -> Any:
        """Returns the transformers class that loads the model."""

    def load_model(self, config: PretrainedConfig, task: Task, options: dict[str, Any]) -> PreTrainedModel:
        """Returns the model to start from; `options` are arguments of `from_pretrained`."""
        load: Any = self.auto_class(config).from_pretrained
        source: str | Path = self.source
        if self._origin.gguf_file is not None and self.quantization_config is not None:
            # transformers cannot quantize a GGUF file while it reads it.
            options = {name: value for name, value in options.items() if name not in self._origin.options}
            quantization, source = options.pop("quantization_config"), self.scratch / "unpacked"
            shutil.rmtree(source, ignore_errors=True)  # of a killed run
            unpacked = load(self.source, **options, **self._origin.options)
            forget_gguf(unpacked)
            unpacked.save_pretrained(str(source))
            options["quantization_config"] = quantization
        return cast("PreTrainedModel", load(source, **options))

    def peft_task(self, config: PretrainedConfig) -> str | None:
        """Returns the task type of an adapter, by peft's name."""
        return None

    def fit(self, run: Run) -> Fit:
        """Trains `run.model` in place by minimising the objective, unless a subclass uses another library's loop."""
        return fit(run) if len(self.devices) < 2 else fit_on_devices(run, self.devices)

    def save(self, model: Any, task: Task, validation: Examples, folder: Path) -> None:
        """Saves the trained model with its tokenizer and card, and checks that it loads as the same model."""
        saved = TrainedModel.save(model, task.tokenizer, folder, self.card)
        if self.peft_config is None:  # merging an adapter is checked before training
            check_saved(saved, model, task, validation)

    def fill_card(self, metrics: Mapping[str, float], objective: Objective | None) -> None:
        """Records the origin of the model and its metrics on the card."""
        card, teacher = self.card, None if objective is None else itself(objective.teacher)
        card.metrics = {name: round(value, 6) for name, value in metrics.items()}
        if self.start is None:
            card.base_model = str(self.model_name)
            card.register("Model Name", self.model_name)
        else:
            card.base_model = self.start.card.base_model
        if isinstance(teacher, TrainedModel) and teacher.node is None:
            card.register("Model Name", teacher.path)
        if self.peft_config is not None:
            card.register("Base Model of the Adapter", adapters.described_base(self.load_options()))
        card.register("License Information", self.license)
        card.register("Model Card", self.base_model_card)
        card.register("Objective", repr(objective) if objective is not None else None)
        for citation in self.citation or ():
            card.register("Citation Information", citation)

    # The run

    def run_training(
        self,
        columns: Mapping[str, object],
        options: Mapping[str, Any],
        objective: Objective | None = None,
        own: Mapping[str, object] = MappingProxyType({}),
        optional: Collection[str] = (),
    ) -> Self:
        """Finds the model for the arguments of `train`, or trains it, and returns the trainer.

        Without an objective, another library's loop has its own. `own` are other arguments that determine the result,
        by name; `optional` are the names of columns that may be None.
        """
        self.need_session()
        training = Training.from_options(options, f'"{self.name}".train', self.arguments, self.decided, type(self))
        checked = check_columns(columns, optional)
        check_devices(self.name, self.devices, training, self.dtype, self.quantization_config is not None)
        with watching() as self.argument_variables:
            parts = {
                **class_part(type(self)),
                "model": fingerprint(self.start or self._origin.identity, "model_name"),
                "objective": fingerprint(objective, "objective"),
            }
            given = {**checked["train"], **checked["validation"]}
            parts |= {f"input {name}": fingerprint(column, name) for name, column in given.items()}
            for name, value in {
                **training.values(),
                "dtype": str(self.dtype),
                "peft_config": None if self.peft_config is None else self.peft_config.to_dict(),
                "quantization_config": None if self.quantization_config is None else self.quantization_config.to_dict(),
                **{key: value for key, value in self.further.items() if key not in HOW_FETCHED},
                **own,
            }.items():
                parts[f"argument {name}"] = fingerprint(value, name)
        teacher = None if objective is None else objective.teacher
        nodes = map(node_of, (self.start, teacher, *getattr(teacher, "teachers", ()), *own.values()))
        parents = [*(column.step for column in given.values()), *(node for node in nodes if node is not None)]
        return self.work(parts, parents, partial(self._build, checked, training, objective))

    def _build(self, columns: Columns, training: Training, objective: Objective | None, draft: Path) -> Kept:
        device, minimised = training_device(self.device), objective or Supervised()
        with quiet(), seeded(training.seed), unload_teacher(minimised.teacher), warnings.catch_warnings():
            # peft looks for a config.json to compare vocabularies with; the folder of a GGUF file has none.
            warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)
            # It saves adapted embeddings with their adapter.
            warnings.filterwarnings("ignore", "Setting `save_embedding_layers` to `True`", UserWarning)
            # peft and trl use names of transformers that are deprecated; users cannot fix that.
            warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
            with loading(self._origin):
                config = transformers.AutoConfig.from_pretrained(self.source, **self.hub_options())
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.source, **self.hub_options())
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            current_usage().note = "reading the rows"
            check_mapped_layers(minimised, config, self.further)
            task = self.make_task(config, tokenizer, columns, training, minimised)
            task.check_objective(minimised)
            columns = with_written_answers(minimised, columns, self.device)
            examples = {split: self._read(task, columns, split) for split in columns}
            teaching = prepare_teacher(
                minimised, task, columns, examples, config, device, training.max_length, self.scratch
            )
            current_usage().note = "loading the model"
            transformers.set_seed(training.seed)
            with loading(self._origin, weights=True):
                model: Any = self.load_model(config, task, self.load_options())
            if self._origin.gguf_file is not None and self.quantization_config is None:
                forget_gguf(model)
            model.config.pad_token_id = task.padding
            check_student(model, minimised.wants, task, examples.values())
            kept = masks(model)
            # Seed again, so that new weights and batches do not depend on what was drawn before, also after a resume.
            transformers.set_seed(training.seed)
            modules = minimised.modules(model, teaching.model)
            if self.peft_config is not None:
                model = self._with_adapter(model, task, examples["train"])
            run = Run(
                model, task, examples["train"], examples["validation"], training, self.scratch, device,
                training.autocast(self.dtype), minimised, teaching.answers, modules, teaching.factored, kept,
            )  # fmt: skip
            fitted = self.fit(run)
            if self.peft_config is not None:
                model = adapters.saved_and_merged(model, task.tokenizer, draft / ADAPTER_FOLDER, self.source)
                reapply(model, kept)
            model = on_cpu(model, self.dtype)
            self.card.register("Stored Teacher", teaching.facts)
            self.fill_card(fitted.metrics, objective)
            self.save(model, task, examples["validation"], draft / self.MODEL_FOLDER)
            if self.peft_config is not None:
                readme = draft / ADAPTER_FOLDER, self.source, self.card, model.config
                write_adapter_readme(*readme, self.hub_task, self.adapter_options)
            write_curves(draft, fitted.curves)
        result = {"epochs": fitted.epochs, "history": fitted.history, "adapter": self.peft_config is not None}
        return self.kept(result=result)

    @property
    def curves(self) -> list[dict[str, float]]:
        """The losses of training by step, and the metrics of each evaluation; also in `curves.json` and `curves.png`.

        Raises:
            NotTrained: `train` was not called yet.
        """
        _ = self.trained
        return read_curves(self.result_folder)

    def _read(self, task: Task, columns: Columns, split: str) -> Examples:
        first, second = reading_order(columns[split])
        examples = task.encode(first, self.scratch / split)
        if second is not None:
            examples = Paired(examples, task.encode(second, self.scratch / f"{split}-written"))
        if examples.dropped:
            logger.warning(
                "%s: %s of the %s rows are left out, as nothing of their answers is left after cutting. "
                "Raise max_length, or shorten the prompts.", self.name, f"{len(examples.dropped):,}", split,
            )  # fmt: skip
        return examples

    @cached_property
    def start(self) -> TrainedModel | None:
        """The trained model to start from; None for a folder or an id on the Hub.

        Raises:
            NotTrained: It is a trainer that is not trained yet.
        """
        return None if isinstance(self.model_name, str | Path) else as_trained_model(self.model_name, "model_name")

    @cached_property
    def _origin(self) -> HFSource:
        source = hf_source(self.model_name if self.start is None else self.start.path, self.revision)
        if source.is_graph:
            raise graph_misfit(f'"{self.name}": model_name', self.start or source.name)
        refuse_unknown_options(type(self), self.further, source, source.fetching(self.trust_remote_code, self.further))
        return source

    @property
    def source(self) -> str:
        """Folder or Hub id of the model to start from."""
        return self._origin.name

    def hub_options(self) -> dict[str, Any]:
        """Returns the arguments of `from_pretrained` for fetching the model."""
        options = self._origin.fetching(self.trust_remote_code, self.further)
        return {"revision": self.revision or "main", **options}

    def load_options(self) -> dict[str, Any]:
        """Returns the arguments of `from_pretrained`."""
        options = {**self.hub_options(), **self.further}
        # Full fine-tuning in mixed precision keeps its weights in float32.
        options["dtype"] = self.dtype if self.peft_config is not None and self.dtype is not None else torch.float32
        if self.quantization_config is not None:
            config = transformers.AutoConfig.from_pretrained(self.source, **self.hub_options())
            empty = partial(self.auto_class(config).from_config, trust_remote_code=self.trust_remote_code)
            options["quantization_config"] = adapters.keeping_heads(self.quantization_config, config, empty)
        return options

    def _with_adapter(self, model: Any, task: Task, train: Examples) -> Any:
        def adapted(model: Any) -> Any:
            if self.quantization_config is not None:
                model = adapters.prepared_codes(model)
            return adapters.with_adapter(model, self.peft_config, self.peft_task(model.config))

        found, config = adapted(model), model.config
        row = {name: part for name, part in task.collate([train[0]]).items() if name in ("input_ids", "attention_mask")}
        if config.is_encoder_decoder:
            row["decoder_input_ids"] = row["input_ids"][:, :1]
        adapters.check_merge(
            found,
            lambda: adapted(self.load_model(config, task, self.load_options())),
            row,
            self.auto_class(config).from_pretrained,
            self.scratch / "trial",
        )
        return found

    # The API of DataDreamer's trainers

    @property
    def auto_cls(self) -> Any:
        """The transformers class that loads the model."""
        return self.auto_class(transformers.AutoConfig.from_pretrained(self.source, **self.hub_options()))

    @property
    def base_model_card(self) -> str | None:
        """Address of the card of the model that training starts from, if it is on the Hub."""
        return self._origin.model_card

    @property
    def license(self) -> str | None:
        """Licence of the model that training starts from, if its README states one."""
        return self._origin.license if self.start is None else next(iter(self.start.card.licenses), None)

    def export_to_disk(self, path: str | Path, adapter_only: bool = False) -> Path:
        """Writes the trained model, or only its adapter, to a folder; an earlier export there is replaced.

        Raises:
            DefinitionError: There is no adapter.
        """
        return self.adapter().export(to=path) if adapter_only else self.export(to=path)

    def publish_to_hf_hub(  # type: ignore[override]  # DataDreamer puts adapter_only before is_synthetic
        self,
        repo_id: str,
        branch: str | None = None,
        private: bool = False,
        token: str | None = None,
        adapter_only: bool = False,
        is_synthetic: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Publishes the trained model, or only its adapter; see `TrainedModel.publish_to_hf_hub`.

        Raises:
            DefinitionError: There is no adapter.
            HubError: The Hub refused, or cannot be reached; or the adapter's base model is not on the Hub.
        """
        trained = self.adapter() if adapter_only else self.trained
        if adapter_only:
            adapters.check_base(self.name, self.source, self.start)
            kwargs["options"] = self.adapter_options(trained.config)
        return trained.publish_to_hf_hub(repo_id, branch, private, token, is_synthetic=is_synthetic, **kwargs)

    def adapter_options(self, config: PretrainedConfig) -> dict[str, Any]:
        """Returns the arguments to load the adapter's base model with, for the model of this config."""
        return adapters.stated_options(self.name, self.load_options(), config)

    def adapter(self) -> TrainedModel:
        """Returns the adapter that was trained, alone; `DefinitionError` without one."""
        adapter = TrainedModel(adapters.saved_adapter(self.name, Path(self.trained.path)), node=self)
        adapter.config = self.trained.config  # an adapter's folder has none of its own
        return adapter
