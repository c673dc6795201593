"""Exports in vLLM, which has an environment of its own: `make test-vllm`."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from datadreamer_like.models import TrainedModel

PYTHON = os.environ.get("VLLM_PYTHON", "")
TOLERANCE = 0.15
START_AND_RUN = 1500
"""Seconds, of which a machine without other work takes 20."""
TEXTS = ["a small cat sat on", "dogs run in the park", "the quick brown fox"]
# Standard output has vLLM's log too. On a CPU its 4-bit kernels, and with AMX those for int8, take no float32.
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(sys.argv[1], enforce_eager=True, dtype="bfloat16", max_model_len=64, max_num_seqs=4)
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    rows = []
    for output in llm.generate(json.loads(sys.argv[2]), asked):
        given = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:])
        rows.append([output.prompt_token_ids, [found[token].logprob for token, found in given]])
    open(sys.argv[3], "w").write(json.dumps(rows))
"""


def in_vllm(folder: Path, work: Path) -> list[tuple[list[int], list[float]]]:
    """The token ids of each text, and the log-probability of each but the first, in vLLM."""
    (work / "script.py").write_text(SCRIPT)
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": ""}
    command = [PYTHON, str(work / "script.py"), str(folder), json.dumps(TEXTS), str(work / "rows.json")]
    log = work / "log.txt"
    # A file, so that what was said is known of an engine that is too slow as well; a session, as it has processes.
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        code: int | str = process.wait(START_AND_RUN)
    except subprocess.TimeoutExpired:
        code = f"none after {START_AND_RUN} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "Error" in line]
    assert code == 0, "\n".join([f"exit code {code}", *errors[-20:], "...", *lines[-40:]])
    rows: list[tuple[list[int], list[float]]] = json.loads((work / "rows.json").read_text())
    return rows


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not PYTHON, reason="vLLM has an environment of its own: make test-vllm")
@pytest.mark.parametrize("scheme", ["W8A8", "W4A16"])
def test_vllm_computes_what_transformers_does_from_an_export(scheme: str, tmp_path: Path) -> None:
    if scheme == "W4A16" and "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("vLLM's 4-bit kernels for CPUs need AVX-512")
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = tiny_models.byte_pairs(TEXTS, 300, ["<s>", "</s>", "<pad>"], model_max_length=64, **names)
    model = tiny_models.llama(tokenizer, hidden_size=256, intermediate_size=512, seed=1)
    student = TrainedModel.save(model, tokenizer, tmp_path / "student")
    folder = student.export("compressed-tensors", to=tmp_path / "export", scheme=scheme, texts=TEXTS)
    again = TrainedModel.load(folder).model
    for ids, found in in_vllm(folder, tmp_path):
        with torch.no_grad():
            logits = again(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = logits[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
        # The kernels round activations in other places: by 0.01 at most. Equal probabilities of all tokens would be
        # further away than the tolerance.
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=0, atol=TOLERANCE)
        assert (wanted + math.log(logits.shape[-1])).abs().max() > 2 * TOLERANCE
