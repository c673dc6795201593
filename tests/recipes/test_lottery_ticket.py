"""Lottery tickets: what each round keeps, what survivors are set back to, and the controls."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from trainers.conftest import opinions
from transformers import AutoModelForSequenceClassification

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit
from datadreamer_like.pruning import Magnitude
from datadreamer_like.recipes import LotteryTicket
from datadreamer_like.stages import Prune, Rewind
from datadreamer_like.trainers import (
    TrainHFClassifier,
    TrainHFMaskedLM,
    TrainLinearClassifier,
    TrainSentenceTransformer,
)

from .conftest import QUICK, columns

OPTIONS = {**QUICK, "epochs": 2}


def weights(model: Any) -> dict[str, torch.Tensor]:
    """The dense weights of what a node saved."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model.path)
    return {name: value.detach() for name, value in loaded.named_parameters()}


def matrices(state: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in state.items() if value.dim() == 2 and "embeddings" not in name]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Any) -> LotteryTicket:
    """Two rounds, with controls."""
    with DataDreamer(tmp_path_factory.mktemp("tickets"), verbose=False):

        def trainer(name: str, model_name: Any = str(tiny_encoder)) -> TrainHFClassifier:
            return TrainHFClassifier(name, model_name=model_name, device="cpu")

        return LotteryTicket("T", trainer, **columns(40, 16), rounds=2, share=0.3, **OPTIONS)


def test_the_start_is_the_models_weights_with_the_head_that_the_trainer_draws(found, tiny_encoder):
    start = weights(found.start)
    encoder = dict(transformers.AutoModel.from_pretrained(tiny_encoder).named_parameters())
    for name, value in encoder.items():
        assert torch.equal(start[f"bert.{name}"], value), name
    assert start["classifier.weight"].abs().sum() > 0


def test_after_each_round_survivors_have_the_first_weights_bit_for_bit(found):
    start = weights(found.start)
    for number, (ticket, before) in enumerate(
        zip(found.tickets, [found.dense, *found.students], strict=False), start=1
    ):
        state, trained = weights(ticket), weights(before)
        assert set(state) == set(start)
        for name, value in state.items():
            kept = value != 0
            assert torch.equal(value[kept], start[name][kept]), name
            if name not in matrices(start):
                assert torch.equal(value, start[name]), name
                continue
            # Exactly the smallest weights of the network that was trained before are gone, as many as asked for.
            left = 0.7 if name != "classifier.weight" else 0.85
            removed = round((1 - left**number) * value.numel())
            assert int((~kept).sum()) == removed, name
            sizes = trained[name].abs()
            assert float(sizes[~kept].max()) <= float(sizes[kept].min()), name


def test_removed_weights_stay_zero_in_training_and_in_later_rounds(found):
    for ticket, trained in zip(found.tickets, found.students, strict=True):
        zeros, state = weights(ticket), weights(trained)
        for name in matrices(zeros):
            assert torch.equal(state[name] == 0, zeros[name] == 0), name
            assert not torch.equal(state[name], zeros[name]), name
    first, second = (weights(ticket) for ticket in found.tickets)
    assert all(bool((second[name][first[name] == 0] == 0).all()) for name in matrices(first))


def test_the_controls_have_the_tickets_zeros_or_as_many_elsewhere(found):
    start, ticket = weights(found.start), weights(found.tickets[-1])
    again, random = (weights(found.controls[title].start) for title in ("reinitialized", "random mask"))
    for name in matrices(ticket):
        assert torch.equal(again[name] == 0, ticket[name] == 0), name
        assert not bool((again[name] == start[name]).any()), name
        kept = random[name] != 0
        assert int(kept.sum()) == int((ticket[name] != 0).sum()), name
        assert not torch.equal(kept, ticket[name] != 0), name
        assert torch.equal(random[name][kept], start[name][kept]), name


def test_the_table_names_each_network_with_what_is_left_of_it(found):
    rows = found.table.rows
    assert [row["model"] for row in rows] == ["dense", "round 1", "round 2", "reinitialized", "random mask"]
    assert [row["left"] for row in rows] == pytest.approx([1, 0.7, 0.49, 0.49, 0.49])
    assert [row["loss"] for row in rows[:2]] == [found.dense.metrics["loss"], found.students[0].metrics["loss"]]
    assert "random mask" in str(found)


def test_rewinding_to_a_later_step_gives_the_weights_of_that_step(session, tiny_encoder):
    class Steps(transformers.TrainerCallback):
        seen: dict[int, dict[str, torch.Tensor]] = {}

        def __fingerprint__(self) -> str:
            return "steps"

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.seen[state.global_step] = {name: value.detach().clone() for name, value in model.named_parameters()}

    given = columns(40, 16)

    def trainer(name: str, model_name: Any = str(tiny_encoder)) -> TrainHFClassifier:
        return TrainHFClassifier(name, model_name=model_name, device="cpu")

    trainer("Whole").train(**given, **OPTIONS, callbacks=[Steps()])
    assert max(Steps.seen) == 10
    expected = Steps.seen[4]
    found = LotteryTicket(
        "Late", trainer, **given, rounds=1, share=0.5, rewind_step=4, scope="model", controls=False, **OPTIONS
    )
    start, ticket = weights(found.start), weights(found.tickets[0])
    assert all(torch.equal(value, expected[name]) for name, value in start.items())
    body = [name for name in matrices(start) if name != "classifier.weight"]
    zeros = sum(int((ticket[name] == 0).sum()) for name in body)
    assert zeros == round(0.5 * sum(ticket[name].numel() for name in body))
    assert found.controls == {}


def test_a_language_model_gives_a_ticket_with_the_metrics_that_it_has(session, tmp_path):
    given = columns(16, 8)
    tokenizer = tiny_models.word_pieces(opinions(16)["text"])
    tokenizer.mask_token = "[MASK]"
    model = tiny_models.bert(tokenizer, kind=transformers.BertForMaskedLM)
    tiny_encoder = tiny_models.save(model, tokenizer, tmp_path / "encoder")
    texts = {name: column if name.endswith("_input") else None for name, column in given.items()}
    masked = partial(TrainHFMaskedLM, model_name=str(tiny_encoder), device="cpu")
    found = LotteryTicket("T", masked, **texts, rounds=1, controls=False, epochs=1, batch_size=8, learning_rate=1e-3)
    assert [line.split() for line in str(found).splitlines() if line.startswith("model")] == [
        ["model", "weights", "left", "loss", "perplexity"]
    ]
    assert found.students[0].metrics["perplexity"] > 1
    with pytest.raises(DefinitionError, match='"U": TrainHFMaskedLM takes no train_output or validation_output'):
        LotteryTicket("U", masked, **given)


def test_an_embedder_gives_a_ticket_by_the_names_of_its_columns(session, tiny_encoder):
    given = columns(8, 4)
    embedder = partial(TrainSentenceTransformer, model_name=str(tiny_encoder), device="cpu")
    splits, names = ("train", "validation"), ("anchors", "positives")
    pairs = {f"{split}_{name}": given[f"{split}_input"] for split in splits for name in names}
    options = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "loss": MultipleNegativesRankingLoss}
    found = LotteryTicket("T", embedder, **pairs, rounds=1, share=0.5, **options)
    models = (found.start, found.tickets[0], found.students[0])
    start, ticket, student = (each.trained.model.state_dict() for each in models)
    for name in matrices(start):
        kept = ticket[name] != 0
        assert int(kept.sum()) == kept.numel() // 2, name
        assert torch.equal(ticket[name][kept], start[name][kept]), name
        assert torch.equal(student[name] != 0, kept), name
    for model in (*found.students, *found.controls.values()):
        assert [type(module) for module in model.model] == [type(module) for module in found.start.model]
    assert "MRR@10" in str(found)
    with pytest.raises(DefinitionError, match="an embedder is trained by a method for its columns"):
        LotteryTicket("U", embedder, **given)
    with pytest.raises(DefinitionError, match='"V": TrainHFClassifier takes no train_anchors'):
        LotteryTicket("V", partial(TrainHFClassifier, model_name=str(tiny_encoder)), **given, **pairs)
    with pytest.raises(DefinitionError, match='Did you mean "learning_rate"'):
        LotteryTicket("W", embedder, **pairs, learning_rte=1e-3)


def test_what_makes_no_ticket_is_refused_before_any_work(session, trainer):
    given = columns()
    for options, error, says in (
        ({"rounds": 0}, DefinitionError, "rounds is 0"),
        ({"share": 1.0}, DefinitionError, "under 1"),
        ({"share": 0}, DefinitionError, "share"),
        ({"rewind_step": -1}, DefinitionError, "rewind_step"),
        ({"round": 2}, DefinitionError, 'Did you mean "rounds"'),
        ({"learning_rte": 1e-3}, DefinitionError, 'Did you mean "learning_rate"'),
        ({"scope": "class"}, DefinitionError, "scope"),
    ):
        with pytest.raises(error, match=says):
            LotteryTicket("T", trainer, **given, **options)
    with pytest.raises(ArgumentTypeError, match="a function that makes a new trainer"):
        LotteryTicket("T", TrainHFClassifier("A", "model"), **given)
    with pytest.raises(ArgumentTypeError, match="TrainLinearClassifier, which has no transformers model to rewind"):
        LotteryTicket("T", TrainLinearClassifier, **given)


def test_a_rewind_needs_models_of_one_architecture_and_a_dense_one_to_go_back_to(session, trainer, tmp_path):
    given = columns(16, 8)
    trained = trainer("A").train(**given, **{**OPTIONS, "epochs": 1})
    sparse = Prune("Sparse", trained, Magnitude(0.5))
    with pytest.raises(MethodMisfit, match='"B": to is pruned or quantized'):
        Rewind("B", sparse, to=sparse)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "other")
    trained.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(MethodMisfit, match=r'"C": bert\.encoder.* or of another shape'):
        Rewind("C", sparse, to=tmp_path / "other")
    again = Rewind("Not pruned", trained, to=trained)
    assert all(torch.equal(value, weights(trained)[name]) for name, value in weights(again).items())
