"""Every pruning and quantization method: input untouched, deterministic, saved = loaded, smaller, a misfit refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import PACKAGE, classes_of
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from warm import printed_by

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.graph.fingerprint import fingerprint

METHODS = classes_of("pruning", "quantization", below=CompressionMethod)
TEXTS = ["the cat sat", "the dog sat on the mat", "a mat", "the the cat"]


class Given:
    """A model with its tokenizer, and how a method is applied to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def batch(self, tokenizer: Any = None) -> dict[str, torch.Tensor]:
        return dict((tokenizer or self.tokenizer)(TEXTS, return_tensors="pt", padding=True))

    def applied(self, method: Any, model: Any = None) -> tuple[Any, Any]:
        """Returns the smaller model and its tokenizer."""
        model = self.model if model is None else model
        batches = [{**self.batch(), "labels": torch.tensor([0, 1, 2, 0])}]
        data = TEXTS if method.changes_tokenizer else batches
        return method.apply(model, data, tokenizer=self.tokenizer)  # type: ignore[no-any-return]


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def given(small_classifier: Path) -> Given:
    return Given(small_classifier)


@pytest.fixture(scope="module")
def saved(given: Given, tmp_path_factory: pytest.TempPathFactory) -> dict[type, Path]:
    """A folder for each method, with the small model that it made."""
    folders = {}
    for kind in METHODS:
        folders[kind] = folder = tmp_path_factory.mktemp(kind.__name__)
        model, tokenizer = given.applied(kind.example())  # type: ignore[attr-defined]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        torch.save(logits(model, given.batch(tokenizer)), folder / "expected.pt")
    return folders


@pytest.fixture(scope="module")
def loaded_elsewhere(saved: dict[type, Path]) -> dict[str, Any]:
    """What each folder's model says in a fresh process, and its bytes in memory."""
    script = f"""
import json, sys, torch
import datadreamer_like.quantization
from transformers import AutoModelForSequenceClassification, AutoTokenizer
found = {{}}
for folder in sys.argv[1:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)({TEXTS!r}, return_tensors="pt", padding=True)
    with torch.no_grad():
        found[folder] = model(**batch).logits.tolist()
print(json.dumps(found))
"""
    return json.loads(printed_by(script, *map(str, saved.values()), plain=True))  # type: ignore[no-any-return]


def test_there_are_methods_of_both_kinds() -> None:
    assert {kind.__module__.split(".")[1] for kind in METHODS} == {"pruning", "quantization"}


def test_between_them_they_write_every_layout(saved: dict[type, Path]) -> None:
    written = {
        entry["kind"]
        for folder in saved.values()
        for entry in json.loads((folder / "config.json").read_text()).get("quantization_config", {}).get("layouts", ())
    }
    text = "".join(file.read_text(encoding="utf-8") for file in sorted((PACKAGE / "formats").glob("*.py")))
    written.add("experts")  # of mixtures: tests/compression/test_experts.py saves and loads them by every method
    assert written == set(re.findall(r'\(LayoutKind\):.*?\n    name = "(\w+)"', text, re.DOTALL))


@pytest.mark.parametrize("kind", METHODS)
class TestMethod:
    def test_the_input_model_is_untouched(self, given: Given, kind: Any) -> None:
        before = {name: value.clone() for name, value in given.model.state_dict().items()}
        config, tokens = given.model.config.to_dict(), given.tokenizer.get_vocab()
        shape = str(given.model)
        given.applied(kind.example())
        after = given.model.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert given.model.config.to_dict() == config
        assert given.tokenizer.get_vocab() == tokens
        assert str(given.model) == shape
        assert not given.model.training
        assert all(parameter.grad is None for parameter in given.model.parameters())

    def test_it_does_something_and_always_the_same(self, given: Given, kind: Any) -> None:
        torch.manual_seed(1)
        once, tokenizer = given.applied(kind.example())
        torch.manual_seed(2)
        again, _ = given.applied(kind.example(), copy.deepcopy(given.model))
        batch = given.batch(tokenizer)
        assert torch.equal(logits(once, batch), logits(again, batch))
        states = once.state_dict(), again.state_dict()
        assert list(states[0]) == list(states[1])
        assert all(
            torch.equal(value, states[1][name]) for name, value in states[0].items() if isinstance(value, torch.Tensor)
        )
        assert any(
            name not in states[0] or not torch.equal(states[0][name], value)
            for name, value in given.model.state_dict().items()
        )

    def test_what_is_saved_is_what_is_loaded_in_a_fresh_process(
        self, saved: dict[type, Path], loaded_elsewhere: dict[str, Any], kind: type
    ) -> None:
        expected = torch.load(saved[kind] / "expected.pt").float()
        torch.testing.assert_close(torch.tensor(loaded_elsewhere[str(saved[kind])]), expected, rtol=1e-5, atol=1e-6)

    def test_what_is_loaded_saves_to_the_same_again(self, saved: dict[type, Path], kind: type, tmp_path: Path) -> None:
        AutoModelForSequenceClassification.from_pretrained(saved[kind]).save_pretrained(tmp_path)
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / name).read_bytes() == (saved[kind] / name).read_bytes(), name

    def test_it_takes_fewer_bytes_on_disk(self, saved: dict[type, Path], given: Given, kind: type) -> None:
        def weights(folder: Path) -> int:
            return sum(file.stat().st_size for file in folder.glob("*.safetensors"))

        assert weights(saved[kind]) < 0.95 * weights(given.folder)

    def test_a_model_that_it_does_not_fit_is_refused_with_the_reason(self, given: Given, kind: Any) -> None:
        misfit, method = nn.Sequential(nn.ReLU()), kind.example()
        reason = method.fits(misfit)
        assert reason
        with pytest.raises(MethodMisfit) as caught:
            given.applied(method, misfit)
        assert kind.__name__ in str(caught.value)
        assert reason in str(caught.value)
        assert method.fits(given.model) is None

    def test_data_that_it_needs_are_asked_for(self, given: Given, kind: Any) -> None:
        if kind.needs_calibration:
            with pytest.raises(DefinitionError, match="calibration"):
                kind.example().apply(given.model)
        else:
            kind.example().apply(given.model)

    def test_without_a_tokenizer_it_returns_the_model_alone(self, given: Given, kind: Any) -> None:
        if kind.changes_tokenizer:
            with pytest.raises(DefinitionError, match="tokenizer=tokenizer"):
                kind.example().apply(given.model, TEXTS)
        else:
            assert type(kind.example().apply(given.model, [given.batch()])) is type(given.model)

    def test_the_papers_that_cards_cite_are_those_of_its_docstring(self, kind: Any) -> None:
        assert list(kind.papers) == re.findall(r"arXiv:(\d{4}\.\d{4,5})", kind.__doc__)
        assert kind.kind == kind.__module__.split(".")[1]

    def test_it_is_a_value_that_a_cache_can_tell_from_others(self, kind: Any) -> None:
        method = kind.example()
        assert method == kind.example()
        assert fingerprint(method) == fingerprint(kind.example())
        assert dataclasses.is_dataclass(method)
        assert repr(method).startswith(kind.__name__)
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.anything = 1
