"""A model in ONNX Runtime that is called as the transformers model that it was exported from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from datadreamer_like.errors import StorageError, require_extra

from ..trained.model_files import check_saved_files
from .report import EXPORT_NAME, ONNX_NAME, OUTPUT, Exported

SLOWER = ["SkipLayerNormFusion"]
"""Optimizations of ONNX Runtime that are not used: its kernel for CPUs that adds and normalizes at once takes several
times as long as an addition and a normalization: MiniLM in int8 took 17 % more time."""


class OnnxModel(nn.Module):
    """Runs `model.onnx` in a folder on the CPU; its outputs have the `logits`, fp32.

    The number of threads is torch's at the time of a call.

    Raises:
        MissingExtra: onnxruntime is not installed.
        StorageError: The file is damaged, or another one in the folder was changed after it was saved.
    """

    only_logits = True
    """It has no hidden states or attentions to give."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        require_extra("export", "onnxruntime", what="Running a model on ONNX Runtime")
        check_saved_files(Path(folder))
        self.path = Path(folder) / ONNX_NAME
        self.config = AutoConfig.from_pretrained(folder)
        self.stated_parameters = _parameters(Path(folder))
        self._session: tuple[int, Any] = (0, None)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Returns the outputs for token ids [batch, seq]."""
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        session = self.session()
        inputs = {each.name: given[each.name].numpy() for each in session.get_inputs()}
        (logits,) = session.run([OUTPUT], inputs)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))

    def session(self) -> Any:
        """Returns ONNX Runtime's session, made again if torch's number of threads changed."""
        threads = torch.get_num_threads()
        if self._session[0] != threads:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            try:
                made = onnxruntime.InferenceSession(
                    str(self.path), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER
                )
            except Exception as error:  # its errors share no class
                raise StorageError(f"ONNX Runtime cannot load {self.path}: {error}. Export the model again.") from error
            self._session = (threads, made)
        return self._session[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": (0, None)}


def _parameters(folder: Path) -> int | None:
    """Returns the number of the model's weights, which a quantized graph does not show."""
    return Exported.read(folder).parameters if (folder / EXPORT_NAME).is_file() else None
