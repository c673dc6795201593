from __future__ import annotations

import inspect
from pathlib import Path

from datadreamer_like.models import CTransformers, LlamaCPP


def test_it_is_llamacpp_with_datadreamers_arguments(smollm_gguf: Path, tmp_path: Path) -> None:
    assert list(inspect.signature(CTransformers.__init__).parameters)[1:11] == [
        "model_name", "model_type", "model_file", "max_context_length", "chat_prompt_template", "system_prompt",
        "revision", "threads", "gpu_layers", "cache_folder_path",
    ]  # fmt: skip
    llm = CTransformers(
        str(smollm_gguf.parent), "llama", smollm_gguf.name, 256, system_prompt="Be brief.", threads=1,
        cache_folder_path=tmp_path,
    )  # fmt: skip
    assert isinstance(llm, LlamaCPP)
    assert (llm.context_length, llm.threads, llm.gpu_layers, llm.system_prompt) == (256, 1, 0, "Be brief.")
    assert llm.path == smollm_gguf
    assert llm.get_max_context_length(56) == 200
