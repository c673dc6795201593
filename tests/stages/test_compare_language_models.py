"""What `Compare` reports of language models is what plain transformers gives, text by text."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DataError, MethodMisfit
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.pruning import Magnitude
from datadreamer_like.stages import Compare, Prune
from datadreamer_like.steps.sources.data_source import DataSource
from datadreamer_like.trainers import TrainHFFineTune

PAIRS = [
    ("The cat sat", "on the warm mat."),
    ("A dog", "ran after the red ball."),
    ("Where did the bird sing, and what was the weather like?", "In the old tree."),
    ("Rain", "fell."),
    ("Naïve café", "– déjà vu 🙂 …"),
    ("She read", "a long book at night, he wrote a short letter to his friend."),
]
QUICK: dict[str, Any] = {
    "repeats": 1, "threads": 1, "latency_texts": 2, "throughput_texts": 4, "resamples": 300, "batch_size": 4,
}  # fmt: skip


def _columns(pairs: Iterable[tuple[str, str]], name: str = "Pairs") -> tuple[Any, Any]:
    prompts, answers = zip(*pairs, strict=True)
    output = DataSource(name, data={"prompt": list(prompts), "answer": list(answers)}).output
    return output["prompt"], output["answer"]


def _nats(model: Any, ids: list[int], start: int) -> float:
    """Loss of the tokens from `start` on, one at a time, in float64."""
    with torch.no_grad():
        guesses = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(guesses[place - 1, ids[place]]) for place in range(start, len(ids)))


def _of_causal(folder: Path, before: Callable[[str], str], pairs: Iterable[tuple[str, str]]) -> list[tuple[float, int]]:
    """Loss and number of tokens of each answer with its end, by plain transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt, answer in pairs:
        given = tokenizer(before(prompt), add_special_tokens=False)["input_ids"]
        wanted = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        found.append((_nats(model, given + wanted, len(given)), len(wanted)))
    return found


def _chat(prompt: str) -> str:
    return f"<|user|>{prompt}<eos><|assistant|>"


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, tiny_causal_lm: Path, byte_lm: Path, tiny_seq2seq: Path
) -> Compare:
    """A chat model, one of another tokenizer, an encoder-decoder, and the first one again, on the same answers."""
    models = [tiny_causal_lm, byte_lm, tiny_seq2seq, tiny_causal_lm]
    with DataDreamer(tmp_path_factory.mktemp("compared"), verbose=False):
        return Compare("Cost", models, *_columns(PAIRS), names=["chat", "bytes", "T5", "again"], **QUICK)


def test_figures_are_those_of_plain_transformers(compared: Compare, tiny_causal_lm: Path, byte_lm: Path):
    size = sum(len(answer.encode()) for _, answer in PAIRS)
    for row, folder, before in zip(compared.rows, (tiny_causal_lm, byte_lm), (_chat, str), strict=False):
        found = _of_causal(folder, before, PAIRS)
        nats, tokens = sum(nats for nats, _ in found), sum(count for _, count in found)
        assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
        assert row["loss"] == pytest.approx(nats / tokens, rel=1e-4)
        assert row["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-3)
        assert compared.predictions[row["model"]] == pytest.approx([nats for nats, _ in found], rel=1e-4)


def test_encoder_decoder_gives_the_loss_that_transformers_gives(compared: Compare, tiny_seq2seq: Path):
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tiny_seq2seq), AutoTokenizer.from_pretrained(tiny_seq2seq)
    nats, tokens = [], 0
    for prompt, answer in PAIRS:
        labels = torch.tensor([[*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            loss = float(model(torch.tensor([tokenizer(prompt)["input_ids"]]), labels=labels).loss)
        nats.append(loss * labels.shape[1])
        tokens += labels.shape[1]
    assert compared.predictions["T5"] == pytest.approx(nats, rel=1e-4)
    assert compared.rows[2]["loss"] == pytest.approx(sum(nats) / tokens, rel=1e-4)


def test_difference_is_of_bits_per_byte_whatever_the_tokenizers(compared: Compare):
    sizes = np.array([len(answer.encode()) for _, answer in PAIRS])
    first = np.array(compared.predictions["chat"])
    random = np.random.default_rng(4)
    for row in compared.rows[1:3]:
        more = (np.array(compared.predictions[row["model"]]) - first) / math.log(2)
        found = row["bits_per_byte_difference"]
        assert found.value == pytest.approx(row["bits_per_byte"] - compared.rows[0]["bits_per_byte"])
        drawn = random.integers(0, len(sizes), (4000, len(sizes)))
        ratios = more[drawn].sum(1) / sizes[drawn].sum(1)
        # 300 resamples here and 4,000 there: their quantiles differ by chance.
        expected = pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.6 * ratios.std())
        assert [found.low, found.high] == expected


def test_the_same_language_model_twice_differs_by_exactly_nothing(compared: Compare):
    found = compared.rows[3]["bits_per_byte_difference"]
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert compared.rows[0]["bits_per_byte_difference"] is None


def test_table_says_what_was_timed_and_that_token_figures_differ_in_kind(compared: Compare):
    assert [column.key for column in compared.table.columns[:5]] == [
        "model", "bits_per_byte", "bits_per_byte_difference", "loss", "perplexity",
    ]  # fmt: skip
    notes = " ".join(compared.table.notes)
    size = sum(len(answer.encode()) for _, answer in PAIRS)
    assert f"6 answers of {size} bytes" in notes
    assert "different tokens" in notes
    assert "from text to loss" in notes
    assert "bits per byte (less is better)" in compared.html_path.read_text(encoding="utf-8")
    assert compared.predictions.column_names == ["text", "label", "chat", "bytes", "T5", "again"]


def test_texts_without_labels_are_foreseen_as_they_stand(session: DataDreamer, tiny_causal_lm: Path, byte_lm: Path):
    texts = ["The cat sat on the warm mat.", "Rain fell.", "", "Café"]
    data = DataSource("Texts", data={"text": texts})
    found = Compare("Cost", [tiny_causal_lm, byte_lm], data.output["text"], **QUICK)
    for row, folder in zip(found.rows, (tiny_causal_lm, byte_lm), strict=True):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        # The byte model has no first token; what ends its texts stands before them too.
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        ids = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        nats = [_nats(model, row_ids, 1) for row_ids in ids]
        assert found.predictions[row["model"]] == pytest.approx(nats, rel=1e-4, abs=1e-9)
        size = sum(len(text.encode()) for text in texts)
        assert row["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / size, rel=1e-4)
        assert row["loss"] == pytest.approx(sum(nats) / sum(len(row_ids) - 1 for row_ids in ids), rel=1e-4)
    assert found.predictions.column_names == ["text", tiny_causal_lm.name, "bytes"]


def test_rows_too_long_for_one_model_are_left_out_for_all(session: DataDreamer, tiny_causal_lm: Path, byte_lm: Path):
    long = ("The cat sat on the warm mat. " * 3, "A dog ran after the red ball.")  # 116 bytes, far fewer words
    pairs = [PAIRS[0], long, PAIRS[1]]
    found = Compare("Cost", [tiny_causal_lm, byte_lm], *_columns(pairs), names=["chat", "bytes"], **QUICK)
    assert found.predictions["label"] == [PAIRS[0][1], PAIRS[1][1]]
    assert found.comparison.rows == 2
    assert "1 more were too long for one of the models" in found.table.notes[0]
    with pytest.raises(DataError, match="None of the 1 rows fits.*bytes takes 0 of them"):
        Compare("Long", [tiny_causal_lm, byte_lm], *_columns([long], "Long pairs"), names=["chat", "bytes"], **QUICK)


def test_model_is_asked_as_its_trainer_asked_it(session: DataDreamer, tiny_causal_lm: Path):
    columns = _columns(PAIRS)
    trainer = TrainHFFineTune(
        "LM", str(tiny_causal_lm), chat_prompt_template="Q: {{prompt}} A:", system_prompt=None, device="cpu"
    )
    trainer.train(*columns, *columns, epochs=1, batch_size=4)
    slim = Prune("Slim", trainer, Magnitude(sparsity=0.5))
    found = Compare("Cost", [trainer, slim, trainer.model_path], *columns, **QUICK)
    assert found.rows[0]["loss"] == pytest.approx(trainer.metrics["cross_entropy"], rel=1e-4)
    expected = _of_causal(Path(slim.path), lambda prompt: f"Q: {prompt} A:", PAIRS)
    assert found.predictions["Slim"] == pytest.approx([nats for nats, _ in expected], rel=1e-4)
    # The tokenizer in its folder has it.
    assert found.predictions["model"] == pytest.approx(found.predictions["LM"][:])
    by_chat = _of_causal(Path(trainer.model_path), _chat, PAIRS)
    jinja = AutoTokenizer.from_pretrained(tiny_causal_lm).chat_template
    told = Compare("Told", [trainer.model_path], *columns, chat_prompt_template=jinja, **QUICK)
    assert told.predictions["model"] == pytest.approx([nats for nats, _ in by_chat], rel=1e-4)


def test_rerun_loads_no_language_model(tmp_path: Path, byte_lm: Path):
    shown = []
    for _ in range(2):
        with DataDreamer(tmp_path / "out", verbose=False):
            model = TrainedModel(byte_lm)
            shown.append(str(Compare("Cost", [model], *_columns(PAIRS[:2]), **QUICK)))
    assert shown[0] == shown[1]
    assert not {"model", "config", "tokenizer"} & set(vars(model))


def test_the_odd_model_is_named(session: DataDreamer, good: Path, tiny_causal_lm: Path, byte_lm: Path, tmp_path: Path):
    columns = _columns(PAIRS)
    for models in ([tiny_causal_lm, good, byte_lm], [good, tiny_causal_lm, byte_lm]):
        with pytest.raises(MethodMisfit, match=r"good does text-classification, but .* does text-generation"):
            Compare("Cost", models, *columns, **QUICK)
    headless = AutoModelForCausalLM.from_pretrained(byte_lm).model
    headless.save_pretrained(tmp_path / "headless")
    with pytest.raises(MethodMisfit, match="headless does feature-extraction"):
        Compare("Cost", [byte_lm, tmp_path / "headless"], *columns, **QUICK)


def test_rows_of_which_nothing_can_be_said_are_refused_before_a_model_runs(
    session: DataDreamer, byte_lm: Path, tiny_seq2seq: Path
):
    model = TrainedModel(byte_lm)
    empty = DataSource("Empty", data={"text": ["", ""], "none": ["a", None], "number": [1, 2]}).output
    with pytest.raises(DataError, match="inputs contains only empty texts"):
        Compare("Cost", [model], empty["text"], **QUICK)
    with pytest.raises(DataError, match="labels contains only empty texts"):
        Compare("Cost", [model], empty["text"], empty["text"], **QUICK)
    with pytest.raises(DataError, match="inputs.*None in row 1"):
        Compare("Cost", [model], empty["none"], **QUICK)
    with pytest.raises(TypeError, match="labels must contain texts; row 0 has 1"):
        Compare("Cost", [model], empty["text"], empty["number"], **QUICK)
    with pytest.raises(MethodMisfit, match=f"{tiny_seq2seq.name} answers prompts"):
        Compare("Cost", [model, tiny_seq2seq], empty["text"], **QUICK)
    assert "model" not in vars(model)


def test_a_language_model_whose_loss_is_nan_is_named(session: DataDreamer, byte_lm: Path, tmp_path: Path):
    broken = AutoModelForCausalLM.from_pretrained(byte_lm)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(byte_lm).save_pretrained(tmp_path / "broken")
    with pytest.raises(DataError, match=r"The loss of TrainedModel\('.*broken'\) for the answer '.*' is NaN"):
        Compare("Cost", [byte_lm, tmp_path / "broken"], *_columns(PAIRS), **QUICK)
