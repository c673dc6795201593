"""The report of an export, saved in its folder: what was written, how far from the model it is, and digests."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from datadreamer_like.errors import DefinitionError, MethodMisfit, NewerFormat, StorageError
from datadreamer_like.graph.card import CARD_NAME
from datadreamer_like.storage.digests import check_states, file_states

from ..trained.config_faults import adapter_alone
from ..trained.saved_config import CONFIG_NAME, check_config

Runtime = Literal["torch", "onnx"]
"""What computes a `TrainedModel`: PyTorch, or ONNX Runtime."""
EXPORT_NAME = "export.json"
GGUF_NAME, ONNX_NAME = "model.gguf", "model.onnx"
OUTPUT = "logits"
"""Name of the output of a graph."""
_VERSION = 1
_TORCH_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_NOT_COMPARED = (EXPORT_NAME, CARD_NAME)
"""Files that stages rewrite in a copy of an export."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what its runtime computed from it.

    Attributes:
        format: Name of the format, such as "gguf".
        options: The options of the format.
        loads_in: The runtime in which the files were checked, with its version.
        texts: Number of texts that were compared.
        distance: Relative L2 distance of the runtime's logits from the model's in torch: ‖difference‖ / ‖logits‖.
        agreement: Share of the texts with the same most likely class or next token; of no meaning for embedders.
        parameters: Number of the model's weights.
        weight_bytes: Bytes of the files that hold them.
        files: Size in bytes and digest of each file, but for the card.

    Example:
        >>> Exported.read(student.export("onnx", to="student-onnx")).distance  # doctest: +SKIP
        1.1e-06
    """

    format: str
    options: dict[str, Any]
    loads_in: str
    texts: int
    distance: float
    agreement: float
    parameters: int
    weight_bytes: int
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of the weight files for each weight of the model."""
        return self.weight_bytes / max(1, self.parameters)

    @classmethod
    def read(cls, folder: str | Path) -> Exported:
        """Reads the report in an export's folder.

        Raises:
            StorageError: There is none, or it is damaged.
            NewerFormat: A newer version of this package wrote it.
        """
        path = Path(folder) / EXPORT_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            NewerFormat.check(path, data.pop("version"), _VERSION)
            files = {name: (int(size), str(digest)) for name, (size, digest) in data.pop("files").items()}
            return cls(**data, files=files)
        except FileNotFoundError as error:
            raise StorageError(f"{folder} has no {EXPORT_NAME}: pass an export, other than to safetensors.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is damaged ({error!r}). Export the model again.") from error

    def write(self, folder: Path) -> None:
        """Writes the report, with the digests of the folder's files as they are now, but for the card."""
        files = file_states(folder, (f for f in folder.rglob("*") if f.is_file() and f.name not in _NOT_COMPARED))
        content = {"version": _VERSION, **asdict(self), "files": files}
        (folder / EXPORT_NAME).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def check_export(folder: Path) -> None:
    """Checks that an export's files, but for the card, are as they were written, if its folder has a report.

    Of `config.json` the values are compared that decide answers, if the card has them: classes may be renamed.

    Raises:
        StorageError: A file is missing, cut off or changed.
    """
    if not (folder / EXPORT_NAME).is_file():
        return
    advice = f"Export the model again; to use the files as they are, delete {EXPORT_NAME}."
    files = {name: state for name, state in Exported.read(folder).files.items() if name not in _NOT_COMPARED}
    config = {name: files.pop(name) for name in [*files] if name == CONFIG_NAME}
    check_states(folder, files, "the export", advice)
    try:
        check_states(folder, config, "the export", advice)
    except StorageError:
        if not check_config(folder, "at the export", advice):
            raise


def opened(folder: Path, runtime: str, device: object, dtype: object) -> Path:
    """Returns what to load from a model's folder: the folder itself, or its GGUF file; see `TrainedModel.load`."""
    check_runtime(runtime, device, dtype)
    check_export(folder)
    if (folder / GGUF_NAME).is_file() and runtime == "torch":
        return folder / GGUF_NAME
    if reason := adapter_alone(folder):
        raise StorageError(reason)
    if not (folder / CONFIG_NAME).is_file():
        raise StorageError(
            f"{folder} is not the folder of a saved model: it has no config.json. Pass the folder that was "
            "exported, or a trainer's or stage's `path`."
        )
    if runtime_of(folder) == "onnx" if runtime == "torch" else not (folder / ONNX_NAME).is_file():
        advice = 'Pass runtime="onnx".' if runtime == "torch" else 'Write one: export("onnx", to=folder).'
        raise StorageError(f'{folder} holds no model for runtime="{runtime}". {advice}')
    return folder


def runtime_of(folder: Path) -> Runtime:
    """Returns what runs a model's folder: ONNX Runtime if it has a graph and no weights for PyTorch."""
    graph = (folder / ONNX_NAME).is_file()
    return "onnx" if graph and not any(next(folder.glob(name), None) for name in _TORCH_WEIGHTS) else "torch"


def graph_misfit(what: str, name: object) -> MethodMisfit:
    """Returns the error for a graph where weights are needed; it is the argument `what`, and is called `name`."""
    return MethodMisfit(
        f"{what}: {name} is a graph of ONNX Runtime, which has no weights for PyTorch. Pass the model that it was "
        "exported from."
    )


def check_runtime(runtime: str, device: object = None, dtype: object = None) -> None:
    """Raises `DefinitionError` if a runtime is unknown, or cannot run on this device or in this data type."""
    if runtime not in get_args(Runtime):
        raise DefinitionError(f'runtime is "{runtime}"; choose one of {", ".join(get_args(Runtime))}.')
    if runtime == "onnx" and (str(device or "cpu") != "cpu" or dtype is not None):
        raise DefinitionError(
            f'runtime="onnx" runs on the CPU in the precision of the export, not with device={device}, dtype={dtype}. '
            "Leave both out."
        )
