import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tiny_models import byte_pairs
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from datadreamer_like import pruning
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, MethodMisfit

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
TRAINING = [
    "The cat sat on the warm mat and the catalogue was warmer than the cattle.",
    "A dog ran after the red ball, over and over, until the rain stopped.",
    "Unhappiness, happiness, happily: the happy unhappy people are happier.",
    "Sie kauft fünf Äpfel; er läuft über die Brücke. 12345 67890",
] * 4
CORPUS = [
    "The happy cat sat on the mat.",
    "the cat ran over the warm mat and the happy dog sat",
    "A red mat, a red cat.",
]
OTHER = ["Unhappily the cattle catalogue läuft über 67890 zebras!", "🙂 Quartz"]


def byte_level_bpe() -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TRAINING, trainer)
    backend.add_special_tokens(["<|user|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def byte_fallback_bpe() -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator([word for text in TRAINING for word in text.split()], trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TRAINING, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def word_piece() -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    backend.train_from_iterator(TRAINING, trainer)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def llama(vocabulary: int, tied: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        num_key_value_heads=2,
        **SIZES,
    )
    return transformers.LlamaForCausalLM(config)


def masked_lm(vocabulary: int) -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=vocabulary, **SIZES))


def roberta(vocabulary: int) -> nn.Module:
    return transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(vocab_size=vocabulary, pad_token_id=1, max_position_embeddings=64, **SIZES)
    )


CASES: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], Callable[[int], nn.Module]]] = {
    "byte-level BPE, tied head": (byte_level_bpe, lambda size: llama(size, tied=True)),
    "byte-level BPE, padded embedding": (byte_level_bpe, lambda size: llama(size + 13, tied=False)),
    "byte-fallback BPE": (byte_fallback_bpe, lambda size: llama(size, tied=False)),
    "Unigram": (unigram, roberta),
    "WordPiece": (word_piece, masked_lm),
}


@pytest.fixture(params=sorted(CASES))
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Any]:
    make_tokenizer, make_model = CASES[request.param]
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = make_model(len(tokenizer)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, tokenizer


def kept_tokens(tokenizer: Any, trimmed: Any) -> list[int]:
    """Old ids of the kept tokens by new id, found by their text."""
    old, new = tokenizer.get_vocab(), trimmed.get_vocab()
    return [old[piece] for piece, _ in sorted(new.items(), key=lambda item: item[1])]


def test_ids_map_one_to_one_and_logits_are_equal_on_text_of_kept_tokens(pair: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = pair
    before = copy.deepcopy(model.state_dict()), tokenizer.backend_tokenizer.to_str()
    small, trimmed = pruning.Vocabulary().apply(model, CORPUS, tokenizer=tokenizer)
    kept = kept_tokens(tokenizer, trimmed)
    assert sorted(trimmed.get_vocab().values()) == list(range(len(kept)))
    assert len(kept) < len(tokenizer)
    assert small.config.vocab_size == small.get_input_embeddings().num_embeddings == len(kept)
    small.save_pretrained(tmp_path)
    trimmed.save_pretrained(tmp_path)
    reloaded, again = type(small).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in CORPUS:
        old, new = tokenizer(text, return_tensors="pt"), trimmed(text, return_tensors="pt")
        assert [kept[token] for token in new["input_ids"][0].tolist()] == old["input_ids"][0].tolist()
        assert again(text)["input_ids"] == new["input_ids"][0].tolist()
        with torch.no_grad():
            expected = model(**old).logits[..., kept]
            torch.testing.assert_close(small(**new).logits, expected)
            torch.testing.assert_close(reloaded(**new).logits, expected)
    assert all(torch.equal(before[0][name], value) for name, value in model.state_dict().items())
    assert tokenizer.backend_tokenizer.to_str() == before[1]


def test_other_text_falls_back_to_kept_pieces(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    small, trimmed = pruning.Vocabulary().apply(model, CORPUS, tokenizer=tokenizer)
    for text in OTHER:
        ids = trimmed(text)["input_ids"]
        assert max(ids) < small.config.vocab_size
        if "BPE" in trimmed.backend_tokenizer.model.__class__.__name__ and trimmed.backend_tokenizer.decoder:
            assert trimmed.decode(ids, skip_special_tokens=True) == text


def test_special_tokens_keep_their_part(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    small, trimmed = pruning.Vocabulary().apply(model, CORPUS, tokenizer=tokenizer)
    assert trimmed.special_tokens_map == tokenizer.special_tokens_map
    kept = kept_tokens(tokenizer, trimmed)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        old, new = getattr(model.config, name, None), getattr(small.config, name, None)
        assert (new is None) == (old is None)
        assert old is None or kept[new] == old
    padded = trimmed(CORPUS, padding=True)["input_ids"] if trimmed.pad_token else []
    assert all(len(row) == len(padded[0]) for row in padded)


def test_size_keeps_the_most_frequent_tokens(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    full = len(pruning.Vocabulary().apply(model, CORPUS, tokenizer=tokenizer)[1])
    small, trimmed = pruning.Vocabulary(size=full - 5).apply(model, CORPUS, tokenizer=tokenizer)
    assert full - 5 - 10 <= len(trimmed) <= full - 5
    assert small.config.vocab_size == len(trimmed)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the cat", add_special_tokens=False)["input_ids"][0]) in (
        trimmed.get_vocab()
    )
    with pytest.raises(MethodMisfit, match="too small"):
        pruning.Vocabulary(size=2).apply(model, CORPUS, tokenizer=tokenizer)


def test_minilm_loses_half_of_its_parameters_and_nothing_else(minilm_path: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    model = AutoModel.from_pretrained(minilm_path).eval()
    texts = [line for line in Path(pruning.__file__).read_text().splitlines() if line.strip()]
    small, trimmed = pruning.Vocabulary().apply(model, texts, tokenizer=tokenizer)
    assert small.num_parameters() < 0.53 * model.num_parameters()
    small.save_pretrained(tmp_path)
    trimmed.save_pretrained(tmp_path)
    reloaded, again = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in texts:
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
            found = reloaded(**again(text, return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(found, expected)


def test_a_gpt2_tokenizer_class_reloads_trimmed(tmp_path: Path) -> None:
    backend = byte_level_bpe()
    backend.save_pretrained(tmp_path / "old")
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "old")
    model = llama(len(tokenizer), tied=True)
    _, trimmed = pruning.Vocabulary().apply(model, CORPUS, tokenizer=tokenizer)
    trimmed.save_pretrained(tmp_path / "new")
    again = AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in CORPUS + OTHER:
        assert again(text)["input_ids"] == trimmed(text)["input_ids"]


def test_padding_that_positions_are_counted_from_may_not_move() -> None:
    tokenizer = word_piece()
    config = transformers.RobertaConfig(vocab_size=len(tokenizer), pad_token_id=150, **SIZES)
    with pytest.raises(MethodMisfit, match="counts positions"):
        pruning.Vocabulary().apply(transformers.RobertaModel(config), CORPUS, tokenizer=tokenizer)


def test_misuse_is_refused() -> None:
    model, tokenizer = masked_lm(200), word_piece()
    with pytest.raises(DefinitionError, match="texts, tokenizer=tokenizer"):
        pruning.Vocabulary().apply(model, CORPUS)
    with pytest.raises(EmptyDataset):
        pruning.Vocabulary().apply(model, [], tokenizer=tokenizer)
    with pytest.raises(MethodMisfit, match="no plain token embedding"):
        pruning.Vocabulary().apply(nn.Linear(2, 2), CORPUS, tokenizer=tokenizer)
    with pytest.raises(MethodMisfit, match="beyond the 50 rows"):
        pruning.Vocabulary().apply(masked_lm(50), CORPUS, tokenizer=tokenizer)
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(MethodMisfit, match="WordLevel"):
        pruning.Vocabulary().apply(model, CORPUS, tokenizer=words)
    with pytest.raises(DefinitionError):
        pruning.Vocabulary(size=0)


def test_a_corpus_that_is_one_text_or_holds_none_is_refused() -> None:
    tokenizer = byte_level_bpe()
    model = AutoModel.from_config(transformers.BertConfig(vocab_size=len(tokenizer), **SIZES))
    with pytest.raises(ArgumentTypeError, match="calibration is one text"):
        pruning.Vocabulary().apply(model, CORPUS[0], tokenizer=tokenizer)
    with pytest.raises(DataError, match="Calibration text 1 is NoneType"):
        pruning.Vocabulary().apply(model, ["a", None], tokenizer=tokenizer)  # type: ignore[list-item]


CHAT = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<bos>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


def test_prompts_of_the_chat_template_are_tokenized_as_before():
    texts = [*TRAINING, *["user assistant\n", "the user and the assistant"] * 200]  # words that the corpus lacks
    options = {"bos_token": "<bos>", "eos_token": "<eos>", "model_max_length": 64}
    tokenizer = byte_pairs(texts, 420, ["<bos>", "<eos>"], **options)
    tokenizer.chat_template = CHAT
    _, small = pruning.Vocabulary().apply(llama(len(tokenizer), tied=True), CORPUS, tokenizer=tokenizer)
    messages = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "the happy cat"}]

    def tokens(of: Any) -> list[str]:
        ids = of.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return of.convert_ids_to_tokens(ids)

    assert len(small) < len(tokenizer)
    assert tokens(small) == tokens(tokenizer)
    assert "user" in tokens(small)


def test_token_ids_in_the_generation_config_move():
    tokenizer = byte_level_bpe()
    model = llama(len(tokenizer), tied=True)
    kept, other = tokenizer.encode("cat mat")[:2]
    removed = tokenizer.convert_tokens_to_ids("Un")
    config = model.generation_config
    config.suppress_tokens, config.begin_suppress_tokens = [kept, removed], [removed]
    config.bad_words_ids, config.sequence_bias = [[kept, other], [removed, kept]], [[[other], -2.0], [[removed], 1.0]]
    small, trimmed = pruning.Vocabulary().apply(model, CORPUS, tokenizer=tokenizer)
    new, new_other = trimmed.encode("cat mat")[:2]
    found = small.generation_config
    assert (new, new_other) != (kept, other)
    assert (found.suppress_tokens, found.begin_suppress_tokens) == ([new], None)
    assert (found.bad_words_ids, found.sequence_bias) == ([[new, new_other]], [[[new_other], -2.0]])
    assert model.generation_config.suppress_tokens == [kept, removed]
    small.generate(torch.tensor([[new]]), max_new_tokens=2, do_sample=False)


def test_a_model_with_another_part_for_each_token_is_refused() -> None:
    config = transformers.MobileBertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16,
    )  # fmt: skip
    pieces = {piece: index for index, piece in enumerate(["[UNK]", *"abcdefgh"])}
    backend = tokenizers.Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    with pytest.raises(MethodMisfit, match=r'"cls\.predictions\.dense\.weight" also has a part for each token'):
        pruning.Vocabulary().apply(transformers.MobileBertForMaskedLM(config), ["a"], tokenizer=tokenizer)
    small, _ = pruning.Vocabulary().apply(transformers.MobileBertModel(config), ["a"], tokenizer=tokenizer)
    assert small.get_input_embeddings().num_embeddings < 99
