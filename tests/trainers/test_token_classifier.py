"""TrainHFTokenClassifier: spans as BIO tags of tokens, teachers and students alike."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, AutoTokenizer, BertForTokenClassification, pipeline
from warm import printed_by

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import (
    ULD,
    Combined,
    Hidden,
    HiddenStates,
    Sampled,
    SoftTargets,
    StoredTeacher,
    Supervised,
    TopK,
    WordLevel,
)
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, LabelError, MethodMisfit
from datadreamer_like.evaluation.columns import check_columns
from datadreamer_like.evaluation.quality import span_scores
from datadreamer_like.evaluation.tasks.token_classification import TokenClassification, find_span_labels
from datadreamer_like.models import TrainedModel
from datadreamer_like.models.trained.spans import spans_of_tags, tag_names, tags_of_spans, units_of
from datadreamer_like.trainers import TrainHFClassifier, TrainHFTokenClassifier

from .conftest import WORDS, Rows

TRAIN: dict[str, Any] = {"epochs": 8, "batch_size": 8, "learning_rate": 5e-3}


def sentences(rows: int, seed: int = 0) -> dict[str, list[Any]]:
    """Texts in which "good" and "bad" words are spans, of one word or two."""
    dice = random.Random(seed)
    texts, spans = [], []
    for _ in range(rows):
        text, found = "", []
        for _ in range(dice.randint(3, 7)):
            word = dice.choice(WORDS[6:9])
            if dice.random() < 0.4:
                kind = dice.randrange(2)
                word = dice.choice((WORDS[:2], WORDS[3:5])[kind])
                word = f"{word} {WORDS[2 + 3 * kind]}" if dice.random() < 0.5 else word
                found.append({"start": len(text), "end": len(text) + len(word), "label": ("praise", "blame")[kind]})
                word += " and"  # so that no two spans touch
            text += f"{word} "
        texts.append(text.strip())
        spans.append(found)
    return {"text": texts, "spans": spans}


def columns(train: dict[str, Any] | None = None, validation: dict[str, Any] | None = None) -> dict[str, Any]:
    first, second = Rows("Train", train or sentences(64)), Rows("Validation", validation or sentences(24, seed=1))
    (text, spans) = first.dataset.column_names
    return {
        "train_input": first.output[text], "train_output": first.output[spans],
        "validation_input": second.output[text], "validation_output": second.output[spans],
    }  # fmt: skip


@pytest.fixture(scope="module")
def taught(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained classifier; its metrics are those of the validation rows."""
    with DataDreamer(tmp_path_factory.mktemp("taught"), verbose=False):
        return TrainHFTokenClassifier("Teacher", str(tiny_encoder), device="cpu").train(**columns(), **TRAIN)


@pytest.fixture
def teacher(taught: Any) -> TrainedModel:
    return taught.trained


def test_it_finds_spans_in_every_process_and_in_the_pipeline(taught, tmp_path):
    trainer = taught
    assert trainer.metrics["f1"] > 0.9
    held_out = sentences(20, seed=2)
    found = trainer.spans(held_out["text"])
    bare = [[{key: span[key] for key in ("start", "end", "label")} for span in spans] for spans in found]
    wanted, said = ([[tuple(span.values()) for span in spans] for spans in each] for each in (held_out["spans"], bare))
    assert span_scores(wanted, said)["f1"] > 0.9

    code = (
        "import json, sys; from datadreamer_like.models import TrainedModel\n"
        "print(json.dumps(TrainedModel.load(sys.argv[1]).spans(json.loads(sys.argv[2]))))"
    )
    arguments = [str(trainer.export(to=tmp_path / "exported")), json.dumps(held_out["text"][:5])]
    assert json.loads(printed_by(code, *arguments)) == found[:5]

    finder = pipeline("token-classification", model=trainer.path, aggregation_strategy="first", device="cpu")
    assert finder.model.config.id2label[1] == "B-blame"
    for text, spans in zip(held_out["text"][:8], bare, strict=False):
        theirs = [(each["start"], each["end"], each["entity_group"]) for each in finder(text)]
        assert theirs == [tuple(span.values()) for span in spans]


def test_tokens_with_tags_are_the_same_as_texts_with_spans(session, tiny_encoder):
    tokens = [["very", "good", "tea", "and", "bad", "film"], ["the", "awful", "day"]]
    tags = [["B-praise", "I-praise", "O", "O", "B-blame", "O"], ["O", "B-blame", "O"]]
    texts = [" ".join(row) for row in tokens]
    spans = [
        [{"start": 0, "end": 9, "label": "praise"}, {"start": 18, "end": 21, "label": "blame"}],
        [{"start": 4, "end": 9, "label": "blame"}],
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    found = []
    for name, rows in (("A", {"a": tokens, "b": tags}), ("B", {"a": texts, "b": spans})):
        output = Rows(name, rows).output
        read = check_columns({"train_input": output["a"], "train_output": output["b"]} | {})["train"]
        names = find_span_labels(read)
        task = TokenClassification(tokenizer, names, 32)
        examples = task.encode(read, session.cache_folder / name)
        found.append((names, [{key: list(v) for key, v in examples[i].items() if key != "row"} for i in range(2)]))
    assert found[0] == found[1]
    assert found[0][0] == ("O", "B-blame", "I-blame", "B-praise", "I-praise")
    # [CLS] very good tea and bad film [SEP]
    assert found[0][1][0]["labels"] == [-100, 3, 4, 0, 0, 1, 0, -100]


@pytest.mark.parametrize("weights", ["balanced", {"O": 0.5, "blame": 3, "I-praise": 2.0}])
def test_class_weights_multiply_the_terms_of_their_tags(session, tiny_encoder, weights):
    options: dict[str, Any] = {"epochs": 1, "batch_size": 64, "learning_rate": 0.0}
    trainer = TrainHFTokenClassifier("It", str(tiny_encoder), device="cpu")
    trainer.train(**columns(), class_weights=weights, **options)
    tags = ["O", "B-blame", "I-blame", "B-praise", "I-praise"]
    tokenizer, model = trainer.tokenizer, trainer.model

    def labelled(rows: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [tokens, tags] and the tag of each token, whose words are single tokens here."""
        log_probs, numbers = [], []
        for text, spans in zip(rows["text"], rows["spans"], strict=True):
            encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
            places = encoded.pop("offset_mapping")[0][1:-1].tolist()
            for start, _ in places:
                inside = next((span for span in spans if span["start"] <= start < span["end"]), None)
                where = "" if inside is None else "B-" if inside["start"] == start else "I-"
                numbers.append(tags.index("O" if inside is None else where + inside["label"]))
            with torch.no_grad():
                log_probs.append(model(**encoded).logits[0, 1:-1].log_softmax(-1))
        return torch.cat(log_probs), torch.tensor(numbers)

    _, trained_on = labelled(sentences(64))
    counts = torch.bincount(trained_on, minlength=5)
    by_hand = {"O": 0.5, "B-blame": 3.0, "I-blame": 3.0, "B-praise": 1.0, "I-praise": 2.0}
    wanted = counts.sum() / (5 * counts) if weights == "balanced" else torch.tensor([by_hand[tag] for tag in tags])
    log_probs, held_out = labelled(sentences(24, seed=1))
    losses = -log_probs.gather(1, held_out[:, None])[:, 0]
    assert trainer.metrics["loss"] == pytest.approx((wanted[held_out] * losses).mean().item(), rel=1e-4)


def test_weights_of_unknown_tags_or_without_labels_are_refused(session, tiny_encoder, teacher):
    trainer = TrainHFTokenClassifier("It", str(tiny_encoder), device="cpu")
    with pytest.raises(LabelError, match='class_weights has "prais".*Did you mean'):
        trainer.train(**columns(), class_weights={"prais": 2.0}, **TRAIN)
    for weights, error, message in (
        (2.0, ArgumentTypeError, "class_weights must be"),
        ({"O": -1}, DefinitionError, "the class weight of 'O' is -1"),
    ):
        with pytest.raises(error, match=message):
            trainer.train(**columns(), class_weights=weights, **TRAIN)
    with pytest.raises(DefinitionError, match="class_weights weigh labels, and SoftTargets uses none"):
        trainer.train(**columns(), class_weights={"O": 2}, objective=SoftTargets(teacher, alpha=1.0), **TRAIN)


def test_the_loss_is_on_the_first_token_of_a_word_or_on_every_one(session):
    tokenizer = tiny_models.word_pieces(
        {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "tea", "##pot", "my"])}
    )
    output = Rows("A", {"a": ["my teapot tea"], "b": [[{"start": 3, "end": 9, "label": "x"}]]}).output
    read = check_columns({"train_input": output["a"], "train_output": output["b"]})["train"]
    labels = {}
    for every in (False, True):
        task = TokenClassification(tokenizer, tag_names(["x"]), 32, every=every)
        examples = task.encode(read, session.cache_folder / f"every{every}")
        batch = task.collate([examples[0]])
        labels[every] = batch["labels"][0].tolist()
        assert batch["mask"][0].tolist() == [label != -100 for label in labels[every]]
    assert labels == {False: [-100, 0, 1, -100, 0, -100], True: [-100, 0, 1, 2, 0, -100]}
    short = TokenClassification(tokenizer, tag_names(["x"]), 4).encode(read, session.cache_folder / "short")
    assert list(short[0]["labels"]) == [-100, 0, 1, -100]  # cut after "tea"


def test_units_are_words_without_white_space():
    text = "a b, c"  # as a tokenizer that keeps spaces with the following token splits it
    offsets, words = [(0, 0), (0, 1), (1, 3), (3, 4), (4, 6), (0, 0)], [None, 0, 0, 0, 0, None]
    assert [unit[1:] for unit in units_of(text, offsets, words, every=False)] == [(0, 1), (2, 4), (5, 6)]
    assert [unit[1:] for unit in units_of(text, offsets, words, every=True)] == [(0, 1), (2, 3), (3, 4), (5, 6)]


def conlleval(wanted: list[list[str]], said: list[list[str]]) -> tuple[float, float, float]:
    """Chunk by chunk, token by token, as the Perl script of the CoNLL shared tasks counts."""
    right = found = correct = 0
    for gold, guess in zip(wanted, said, strict=True):
        open_both = False
        previous: tuple[str, str] = ("O", "O")
        for pair in [*zip(gold, guess, strict=True), ("O", "O")]:
            starts, ends = [], []
            for before, now in zip(previous, pair, strict=True):
                same = before[2:] == now[2:]
                ends.append(before != "O" and (now == "O" or now[0] == "B" or not same))
                starts.append(now != "O" and (now[0] == "B" or before == "O" or not same))
            if open_both:
                if ends[0] and ends[1]:
                    right, open_both = right + 1, False
                elif ends[0] != ends[1] or pair[0][2:] != pair[1][2:]:
                    open_both = False
            if starts[0] and starts[1] and pair[0][2:] == pair[1][2:]:
                open_both = True
            correct, found, previous = correct + starts[0], found + starts[1], pair
    precision, recall = right / max(1, found), right / max(1, correct)
    return precision, recall, 2 * precision * recall / max(1e-12, precision + recall)


def test_span_scores_are_those_of_conlleval():
    dice = random.Random(3)
    for _ in range(30):
        wanted, said = (
            [[dice.choice(["O", "O", "B-a", "I-a", "B-b", "I-b"]) for _ in range(9)] for _ in range(6)] for _ in "ab"
        )
        scores = span_scores([spans_of_tags(row) for row in wanted], [spans_of_tags(row) for row in said])
        assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx(conlleval(wanted, said))
    assert span_scores([[]], [[]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_tags_and_spans_are_each_others_inverse():
    dice = random.Random(5)
    units = units_of("a b c d e f g h", [(i, i + 1) for i in range(0, 15, 2)], list(range(8)), every=False)
    for _ in range(50):
        cuts = sorted(dice.sample(range(9), 4))
        spans = [
            {"start": units[a].start, "end": units[b - 1].end, "label": dice.choice("xy")}
            for a, b in (cuts[:2], cuts[2:])
        ]
        tags = tags_of_spans(spans, units, snap=False, where="here")
        found = [(units[a].start, units[b - 1].end, label) for a, b, label in spans_of_tags(tags)]
        assert found == [tuple(span.values()) for span in spans]


def test_a_student_learns_from_a_teacher_alone(session, teacher, tiny_encoder):
    given = columns()
    student = TrainHFTokenClassifier("Student", str(tiny_encoder), device="cpu")
    student.train(
        given["train_input"], None, given["validation_input"], given["validation_output"],
        objective=SoftTargets(teacher, alpha=1.0), **TRAIN,
    )  # fmt: skip
    assert student.metrics["f1"] > 0.8
    assert student.trained.config.id2label == teacher.config.id2label


def test_the_loss_of_soft_targets_is_the_mean_over_words(session, teacher, tiny_encoder):
    """Against the formula, by hand, on one batch."""
    given = columns()
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    read = check_columns({name: given[name] for name in ("train_input", "train_output")})["train"]
    task = TokenClassification(tokenizer, find_span_labels(read), 32)
    batch = task.collate([task.encode(read, session.cache_folder / "one")[i] for i in range(4)])
    student = tiny_models.bert(tokenizer, BertForTokenClassification, num_labels=5, num_attention_heads=2).eval()
    objective = SoftTargets(teacher, temperature=3.0, alpha=0.7)
    with torch.no_grad():
        theirs, ours = (task.forward(model, batch, frozenset({"logits"})) for model in (teacher.model, student))
        found = objective.loss(ours, theirs, batch)
        total = torch.zeros((), dtype=torch.float64)
        words = 0
        for row in range(4):
            text = read["train_input"].values()
            ids = tokenizer(list(text)[row], return_tensors="pt")
            p, q = (model(**ids).logits[0, 1:-1].double() for model in (student, teacher.model))
            labels = batch["labels"][row, 1 : 1 + len(p)]
            kl = F.kl_div((p / 3).log_softmax(-1), (q / 3).log_softmax(-1), log_target=True, reduction="sum")
            total += 0.7 * 9 * kl + 0.3 * F.cross_entropy(p, labels, reduction="sum")
            words += len(p)
    assert found.item() == pytest.approx(float(total / words), rel=1e-4)


def test_hidden_states_and_adapters_work_on_tokens_too(session, teacher, tiny_encoder):
    from peft import LoraConfig

    objective = Combined([Supervised(), HiddenStates(teacher)], [1.0, 0.5])
    student = TrainHFTokenClassifier(
        "Student", str(tiny_encoder), device="cpu", peft_config=LoraConfig(r=4, target_modules=["query", "value"])
    )
    student.train(**columns(), objective=objective, **TRAIN | {"epochs": 2})
    assert student.metrics["token_accuracy"] > 0.5
    assert student.spans(["the good tea"])[0] == TrainedModel(student.path).spans(["the good tea"])[0]
    more = TrainHFTokenClassifier("More", teacher, device="cpu")
    one = {"text": ["a good tea", "a poor day"], "spans": [[{"start": 2, "end": 6, "label": "praise"}], []]}
    more.train(**columns(one, one), **TRAIN | {"epochs": 1})
    assert len(more.trained.config.id2label) == 5  # those of the classifier that it starts from
    assert isinstance(AutoModelForTokenClassification.from_pretrained(more.path), BertForTokenClassification)


GOOD: dict[str, Any] = {"start": 0, "end": 4, "label": "x"}


@pytest.mark.parametrize(
    ("value", "spans", "error", "said"),
    [
        ("good tea", [{**GOOD, "end": 3}], DataError, r"0:3 \(x\) cuts the token 0:4.*snap=True"),
        ("good tea", [{**GOOD, "end": 99}], DataError, "is not a labelled part of its text of 8"),
        ("good tea", [{**GOOD, "start": 4}], DataError, "is not a labelled part"),
        ("good tea", [{**GOOD, "label": ""}], DataError, "is not a labelled part"),
        ("good tea", [GOOD, {**GOOD, "end": 8}], DataError, "shares a token"),
        (["good", "tea"], ["B-x"], DataError, "2 tokens need as many BIO tags"),
        (["good", "tea"], ["B-x", "S-x"], DataError, "2 tokens need as many BIO tags"),
        ("good tea", [], LabelError, "has no span in any row"),
        ("good tea", None, DataError, "is None in row 0"),
    ],
)
def test_wrong_rows_are_refused(session, tiny_encoder, value, spans, error, said):
    rows = {"text": [value], "spans": [spans]}
    with pytest.raises(error, match=said):
        TrainHFTokenClassifier("It", str(tiny_encoder), device="cpu").train(**columns(rows, rows), **TRAIN)


def test_a_span_that_cuts_a_word_is_widened_on_request(session, tiny_encoder):
    rows = {"text": ["good tea", "bad tea"], "spans": [[{**GOOD, "end": 3}], [{**GOOD, "start": 1, "end": 2}]]}
    trainer = TrainHFTokenClassifier("It", str(tiny_encoder), device="cpu")
    trainer.train(**columns(rows, rows), **TRAIN | {"epochs": 30}, snap=True)
    assert [(each["start"], each["end"]) for (each,) in trainer.spans(rows["text"])] == [(0, 4), (0, 3)]


def test_wrong_teachers_and_calls_are_refused(session, teacher, tiny_encoder, data):
    given = columns()
    classes = TrainHFClassifier("Classes", str(tiny_encoder), device="cpu").train(**data(), **TRAIN | {"epochs": 1})
    student = TrainHFTokenClassifier("Student", str(tiny_encoder), device="cpu")
    with pytest.raises(MethodMisfit, match="is not a token classifier"):
        student.train(**given, objective=SoftTargets(classes), **TRAIN)
    for objective in (WordLevel, ULD):
        with pytest.raises(MethodMisfit, match=r"is an objective for TrainHF.*, not for token classification\."):
            student.train(**given, objective=objective(teacher), **TRAIN)
    other = {"text": ["good tea", "a day"], "spans": [[{**GOOD, "label": "other"}], []]}
    with pytest.raises(LabelError, match="the teacher lacks B-other, I-other"):
        student.train(**columns(other, other), objective=SoftTargets(teacher), **TRAIN)
    with pytest.raises(LabelError, match='"other" is not one of those of the training rows'):
        student.train(**columns(None, other), **TRAIN)
    with pytest.raises(ArgumentTypeError, match="validation_output is of type NoneType"):
        student.train(given["train_input"], given["train_output"], given["validation_input"], None, **TRAIN)
    with pytest.raises(ArgumentTypeError, match="snap must be True or False"):
        student.train(**given, snap="yes", **TRAIN)
    with pytest.raises(MethodMisfit, match="finds no spans"):
        classes.trained.spans(["a"])


@pytest.mark.parametrize("signals", [TopK(2), Sampled(2), [TopK(2), Hidden([1])]])
def test_a_stored_teacher_of_tags_is_refused_before_it_is_asked(session, tiny_encoder, teacher, signals):
    asked = []
    handle = teacher.model.register_forward_pre_hook(lambda *given: asked.append(given))
    student = TrainHFTokenClassifier("Student", str(tiny_encoder), device="cpu")
    with pytest.raises(MethodMisfit, match="keeps next-token logits of language models"):
        student.train(**columns(), objective=SoftTargets(StoredTeacher(teacher, signals)), **TRAIN)
    handle.remove()
    assert asked == []
