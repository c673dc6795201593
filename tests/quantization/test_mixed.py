"""Mixed: each layer is quantized as by the method of its pattern alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import batches, build, logits

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit
from datadreamer_like.formats.layout import CodedModule
from datadreamer_like.formats.modules import block_linears
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.pruning import Wanda
from datadreamer_like.quantization import GPTQ, NF4, QAT, AbsMax, Cast, DynamicInt8, LayerByLayer, Mixed


def test_each_layer_is_coded_as_by_the_first_pattern_that_matches_it() -> None:
    model = build("llama")
    parts = {"*.layers.1.mlp.down_proj": AbsMax(8), "*.mlp": NF4(exclude=("*.0.mlp.up_proj",)), "*": AbsMax(4, 16)}
    small = Mixed(parts).apply(model)
    alone = {pattern: method.apply(model) for pattern, method in parts.items()}
    for name in block_linears(model):
        by = "*" if ".mlp." not in name else "*.mlp"
        by = "*.layers.1.mlp.down_proj" if name.endswith("layers.1.mlp.down_proj") else by
        found = small.get_submodule(name)
        if name == "model.layers.0.mlp.up_proj":
            assert not isinstance(found, CodedModule)
            continue
        expected = alone[by].get_submodule(name)
        assert type(found) is type(expected), name
        assert torch.equal(found.dequantized(), expected.dequantized()), name


def test_methods_that_calibrate_and_train_work_in_it_and_it_loads_again(tmp_path: Path) -> None:
    model = build("llama")
    given = batches(model)
    method = Mixed(
        {
            "*.layers.0": GPTQ(4, 16),
            "*.layers.1": LayerByLayer(3, 16, steps=3, learning_rate=1e-3),
            "*": DynamicInt8(embeddings=False),
        }
    )
    assert method.needs_calibration
    assert method.needs_gradients
    assert set(method.papers) == {"2210.17323", "2206.01861", "2208.07339"}
    small = method.apply(model, given)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again, given[0]), logits(small, given[0]))
    assert not Mixed({"*": AbsMax()}).needs_calibration
    assert fingerprint(method) != fingerprint(Mixed({"*": AbsMax()}))
    swapped = Mixed({"*": AbsMax(8), "*.mlp": AbsMax(4)})
    assert fingerprint(swapped) != fingerprint(Mixed({"*.mlp": AbsMax(4), "*": AbsMax(8)}))  # the first that matches


def test_what_it_cannot_do_is_refused_before_any_work() -> None:
    model = build("llama")
    with pytest.raises(ArgumentTypeError, match="a method for each pattern"):
        Mixed([AbsMax()])  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="got no method"):
        Mixed({})
    with pytest.raises(ArgumentTypeError, match="must be one of quantization"):
        Mixed({"*": Wanda(0.5)})
    for method in (QAT(), Cast()):
        with pytest.raises(DefinitionError, match="changes a whole model"):
            Mixed({"*": method})
    with pytest.raises(MethodMisfit, match=r'for the pattern "\*.attention" and NF4, it has no'):
        Mixed({"*.attention": NF4(), "*": AbsMax()}).apply(model)
    with pytest.raises(MethodMisfit, match=r'"\*.0.\*" also match "\*", which comes first.*narrower pattern first'):
        Mixed({"*": AbsMax(), "*.0.*": NF4()}).apply(model)
    with pytest.raises(DefinitionError, match="measures the model on data"):
        Mixed({"*": GPTQ()}).apply(model)
