"""An export that passes its check, but often says something else than the model, is reported as such."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tiny_models
import torch

from datadreamer_like.formats.modules import block_linears
from datadreamer_like.models import TrainedModel
from datadreamer_like.models.exports.report import Exported

pytest.importorskip("compressed_tensors")


def test_an_export_with_other_likeliest_tokens_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [f"w{number}" for number in range(24)]
    tokenizer = tiny_models.word_pieces([" ".join(words)])
    model = tiny_models.llama(tokenizer, hidden_size=32)
    with torch.no_grad():
        for layer in block_linears(model).values():
            layer.weight[:, 0] *= 5  # whose scale leaves the others of its group few codes
    source = TrainedModel.save(model, tokenizer, tmp_path / "model")
    with caplog.at_level(logging.WARNING, logger="datadreamer_like"):
        coarse = source.export("compressed-tensors", to=tmp_path / "4", scheme="W4A16", texts=words)
        agreement = Exported.read(coarse).agreement
        assert agreement < 0.9
        assert f"for {100 * (1 - agreement):.0f} % of the 24 texts" in caplog.text
        caplog.clear()
        fine = source.export("compressed-tensors", to=tmp_path / "8", texts=words)
        assert Exported.read(fine).agreement >= 0.9
        assert not caplog.text
