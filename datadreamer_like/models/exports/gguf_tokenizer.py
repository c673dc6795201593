"""A tokenizer as metadata of a GGUF file: byte-level BPE, which llama.cpp splits exactly as the model's own does."""

from __future__ import annotations

import json
from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BY_PATTERN = {f"{_WORDS}{{1,3}}{_REST}": "llama-bpe", f"{_WORDS}{_REST}": "qwen2"}
"""llama.cpp's names of the patterns by which texts are split before BPE."""


def splitting_of(tokenizer: Any) -> str | None:
    """Returns llama.cpp's name of the way in which a tokenizer splits texts; None for one that it does not know."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    saved = json.loads(backend.to_str())
    model, splitter = saved["model"], saved["pre_tokenizer"] or {}
    if model["type"] != "BPE" or model.get("byte_fallback") or saved["normalizer"] not in (None, {"type": "NFC"}):
        return None
    parts = splitter.get("pretokenizers", [splitter])
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    own_pattern = parts[-1].get("use_regex", True)
    match parts[:-1]:
        case []:
            return "gpt-2" if own_pattern else None
        case [{"type": "Digits", "individual_digits": True}]:
            return "smollm" if own_pattern else None
        case [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}]:
            return None if own_pattern else _BY_PATTERN.get(pattern)
    return None


def add_tokenizer(writer: Any, tokenizer: Any, vocabulary: int) -> None:
    """Adds a tokenizer to a GGUF writer, with unused tokens up to the size of the model's `vocabulary`."""
    from gguf import TokenType

    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {each["id"]: each for each in saved["added_tokens"]}
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for index in range(vocabulary):
        tokens.append(names.get(index, f"[PAD{index}]"))
        if index not in names:
            types.append(TokenType.UNUSED)
        elif index in added:
            types.append(TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    splitting = splitting_of(tokenizer)
    assert splitting is not None, "`why_not` refuses other tokenizers"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in saved["model"]["merges"]])
    for kind in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{kind}_token_id")
        if index is not None:
            getattr(writer, f"add_{kind}_token_id")(index)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if template := getattr(tokenizer, "chat_template", None):
        writer.add_chat_template(template)
