"""An embedder whose transformer is a graph of ONNX Runtime; sentence-transformers loads and runs its other modules."""

from __future__ import annotations

from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from datadreamer_like.distillation.tokens import parts_in_cache
from datadreamer_like.errors import MethodMisfit

from .onnx_model import OnnxModel
from .report import ONNX_NAME


class OnnxEncoder(OnnxModel):
    """Runs the graph of an encoder without a head; its outputs have the vectors of tokens, fp32 [batch, seq, size].

    A batch that is padded on the right is run in parts that stay in the cache of a core; see `parts_in_cache`.
    """

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool = True,
    ) -> BaseModelOutput:
        """Returns the outputs for token ids [batch, seq]; the vectors of padding may be 0."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        batch = {name: value for name, value in given.items() if value is not None}
        on_the_left = attention_mask is not None and bool((attention_mask.diff(dim=1) > 0).any())
        parts = [(range(len(input_ids)), batch)] if on_the_left else parts_in_cache(batch, self.device)
        found = torch.zeros(0)
        for rows, part in parts:
            vectors = cast("Tensor", super().forward(**part).logits)
            if not len(found):
                found = torch.zeros(*input_ids.shape, vectors.shape[-1])
            found[list(rows), : vectors.shape[1]] = vectors
        return BaseModelOutput(last_hidden_state=found)


class OnnxTransformer(Transformer):
    """The first module of an embedder, which reads texts as ever, with the graph as its model."""

    def _load_model(self, model_name_or_path: str, *arguments: Any, **options: Any) -> Any:
        return OnnxEncoder(model_name_or_path)


class OnnxSentenceTransformer(SentenceTransformer):
    """A `SentenceTransformer` of an ONNX export's folder, on the CPU and in fp32 but for the graph.

    Raises:
        MethodMisfit: The first module is not a transformer, modules need more of it than the vectors of tokens, or the
            graph gives other outputs.
        StorageError: The graph is damaged; see `OnnxModel`.
    """

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(folder, **{**options, "device": "cpu"})
        self.float()  # modules of a model in 16 bits, whose graph is in fp32
        first = self[0]
        if not isinstance(first, OnnxTransformer):
            raise MethodMisfit(
                f"{folder}: the first module is {type(first).__name__}, not the transformer that {ONNX_NAME} is the "
                "graph of. Pass the model that it was exported from."
            )
        wanted = [(each["method"], each["method_output_name"]) for each in first.modality_config.values()]
        if set(map(str, wanted)) != {str(("forward", "last_hidden_state"))} or first.config.output_hidden_states:
            raise MethodMisfit(
                f"{folder}: its modules need other outputs than the last vectors of tokens, and {ONNX_NAME} has no "
                "others. Pass the model that it was exported from."
            )
        [output] = first.model.session().get_outputs()
        size = first.get_embedding_dimension()
        if len(output.shape) != 3 or output.shape[-1] != size:
            raise MethodMisfit(
                f"{folder}: {ONNX_NAME} gives outputs of shape {output.shape}, and an embedder needs [batch, tokens, "
                f"{size}]. Export the model again."
            )

    def _load_module_class_from_ref(self, *arguments: Any, **options: Any) -> Any:
        found = super()._load_module_class_from_ref(*arguments, **options)
        return OnnxTransformer if found is Transformer else found

    def _load_default_modules(self, model_name_or_path: str, *arguments: Any, **options: Any) -> Any:
        given = {name: options[name] for name in ("processor_kwargs", "config_kwargs") if options.get(name)}
        transformer = OnnxTransformer(model_name_or_path, **given)
        return [transformer, Pooling(transformer.get_embedding_dimension(), "mean")], {}
