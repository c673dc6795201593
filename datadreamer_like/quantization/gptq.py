"""GPTQ: weights in 3 or 4 bits whose rounding errors the weights that are still to be rounded make up for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datadreamer_like.compression import Batches
from datadreamer_like.compression.calibration import walk_blocks, warn_of_unreached
from datadreamer_like.compression.hessian import check_damping, input_hessians, inverse_factor
from datadreamer_like.errors import check_flag
from datadreamer_like.formats.modules import replace_modules, weight_of
from datadreamer_like.formats.sparse import sparse_names
from datadreamer_like.formats.uniform import UniformLinear
from datadreamer_like.kernels import group_quantize, group_scales

from .weights import GroupQuantization

_COLUMNS = 128


@dataclass(frozen=True)
class GPTQ(GroupQuantization):
    """Weights in few bits, rounded in order so that later ones make up for the error of earlier ones.

    Frantar, Ashkboos, Hoefler and Alistarh 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", arXiv:2210.17323. For the Hessian `H = (2/n) XᵀX` of a layer's inputs and `H⁻¹ = UᵀU`, rounding the
    weights of input j by δ changes those of the inputs after it by `-δ U_j,: / U_jj`, so that the layer's squared
    output error grows least. Blocks of the model are quantized in order, each on what the quantized ones before it put
    out; a module without a list of blocks counts as one. Some 128 sequences of calibration text are enough.

    Weights that were pruned before stay zero; those of later inputs make up for that too.

    The grid is that of `AbsMax(bits, granularity=group_size)`, to which it is equal where inputs are uncorrelated. Only
    weights are quantized: this saves bytes, not time. A result with 4 bits can be exported with these codes to GPTQ's
    own layout and to compressed-tensors.

    Attributes:
        bits: 2 to 8; 4 loses little, 3 is the paper's limit.
        group_size: Inputs that share a scale, at a cost of 16 bits a group.
        act_order: Round inputs in the order of falling `diag(H)`, those with the largest activations first. The groups
            are of adjacent inputs nevertheless, with scales of the original weights (static groups), so that nothing
            else is stored. Without it a scale comes from the weights as they are when the loop enters their group.
        damping: Share of the Hessian's mean diagonal that is added to it; see `compression.hessian`.
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).

    Example:
        >>> small = GPTQ(bits=4).apply(model, [tokenizer(texts, padding=True, return_tensors="pt")])  # doctest: +SKIP
    """

    act_order: bool = True
    damping: float = 0.01

    needs_calibration = True
    papers = ("2210.17323",)
    result_version = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)
        check_flag(self.act_order, "act_order")

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Quantizes the blocks in order, in place."""
        chosen = self.chosen(model)
        made: dict[str, UniformLinear] = {}
        unreached: list[str] = []
        sparse = set(sparse_names(model))
        for block in walk_blocks(model, calibration, self):
            layers = block.own(chosen)
            hessians = input_hessians(block, layers)
            unreached += [name for name, hessian in hessians.items() if not hessian.any()]
            for name, layer in layers.items():
                made[name] = self.empty(layer)
                weight, pruned = weight_of(layer), None
                if f"{name}.weight" in sparse:
                    pruned = weight == 0
                made[name].set_quantized(*self.quantized(weight, hessians.pop(name), pruned))
            replace_modules(block.module, {block.path(name): made[name] for name in layers})
        warn_of_unreached(self, unreached, "their weights are rounded to the nearest codes")
        self.record(model, made)

    def quantized(self, weight: Tensor, hessian: Tensor, pruned: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns codes, int8 [out, in], and scales, fp16 [out, groups], for the Hessian of the inputs [in, in].

        Where `pruned`, bool [out, in], is True the code is 0, as in the joint form of SparseGPT (arXiv:2301.00774).
        """
        weight, diagonal = weight.detach().float().clone(), hessian.diagonal()
        if not diagonal.any():  # an expert that no token reached: nothing to go by
            return group_quantize(weight, self.bits, self.group_size)
        weight[:, diagonal == 0] = 0.0
        scale = group_scales(weight, self.bits, self.group_size)
        codes = torch.empty_like(weight, dtype=torch.int8)
        order = torch.arange(weight.shape[1], device=weight.device)
        if self.act_order:
            order = diagonal.argsort(descending=True, stable=True)
        weight = weight[:, order]
        factor = inverse_factor(hessian[order][:, order], self.damping)
        groups = (order // self.group_size).tolist()
        half = 2 ** (self.bits - 1)
        size = self.group_size * max(1, _COLUMNS // self.group_size)  # so that no group crosses two portions
        for start in range(0, weight.shape[1], size):
            end = min(start + size, weight.shape[1])
            part, inverse = weight[:, start:end], factor[start:end, start:end]
            errors = torch.empty_like(part)
            for column in range(end - start):
                if not self.act_order and column % self.group_size == 0:
                    entered = part[:, column : column + self.group_size]
                    scale[:, groups[start + column]] = group_scales(entered, self.bits, self.group_size)[:, 0]
                own = scale[:, groups[start + column]].float()
                code = (part[:, column] / own).round_().clamp_(-half, half - 1)
                if pruned is not None:
                    code.masked_fill_(pruned[:, order[start + column]], 0)
                codes[:, order[start + column]] = code.to(torch.int8)
                errors[:, column] = (part[:, column] - code * own) / inverse[column, column]
                part[:, column:].addr_(errors[:, column], inverse[column, column:], alpha=-1)
            weight[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
        return codes, scale
