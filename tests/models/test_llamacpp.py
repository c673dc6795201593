from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datadreamer_like.errors import BadRequest, DataError, DefinitionError, PromptTooLong, UnknownModel
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models.llms.generation import Request, Sampling
from datadreamer_like.models.llms.gguf import read_gguf_header
from datadreamer_like.models.llms.llamacpp import LlamaCPP
from datadreamer_like.models.llms.llamacpp_server import _xllamacpp


@pytest.fixture(scope="module")
def llm(smollm_gguf):
    llm = LlamaCPP(str(smollm_gguf), context_length=256, slots=4)
    yield llm
    llm.unload_model()


def _copy(llm: LlamaCPP, **options) -> LlamaCPP:
    return LlamaCPP(llm.model_name, context_length=256, slots=1, **options)


PROMPTS = [f"Name {n} animals." for n in ("two", "three", "four", "five", "six", "seven", "eight", "nine")]


def test_answers_in_the_models_own_chat_template(llm):
    answer = next(llm.answers(["Name three colors."], max_new_tokens=24))
    assert "Red" in answer.text
    assert answer.finish_reasons == ["stop"]
    # 3 messages' worth of ChatML markers and SmolLM's default system message are counted, too.
    assert answer.prompt_tokens == llm.final_count_tokens("Name three colors.") > 20
    assert 0 < answer.completion_tokens <= 24


def test_eight_prompts_at_once_get_the_answers_that_they_get_alone(llm):
    together = llm.run(PROMPTS, max_new_tokens=12)
    alone = [llm.run([prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) > 4


def test_n_gives_different_texts_and_a_seed_gives_them_again(llm):
    options = {"n": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 10}
    first = next(llm.answers(["Tell me a story."], seed=1, **options))
    again = next(llm.answers(["Tell me a story."], seed=1, **options))
    other = next(llm.answers(["Tell me a story."], seed=2, **options))
    assert first.texts == again.texts != other.texts
    assert len(set(first.texts)) == 3
    assert first.completion_tokens > 20


def test_top_p_of_zero_is_greedy_at_any_temperature(llm):
    options = {"max_new_tokens": 8}
    assert llm.run(["Hi."], temperature=2.0, top_p=0.0, **options) == llm.run(["Hi."], temperature=0.0, **options)


def test_samples_follow_the_distribution_at_its_temperature(llm):
    """The share of the likeliest first token is its probability at temperature 2: nothing else is cut off."""
    [greedy] = llm.answers(["Say yes or no."], max_new_tokens=1, top_logprobs=2000)
    logits = [logprob / 2.0 for _, logprob in greedy.logprobs[0][0].top]
    expected = math.exp(logits[0]) / sum(math.exp(logit) for logit in logits)
    [drawn] = llm.answers(["Say yes or no."], max_new_tokens=1, temperature=2.0, top_p=1.0, n=150, seed=0)
    share = sum(text == greedy.text for text in drawn.texts) / 150
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 150) + 0.01)


def test_log_probabilities_of_the_likeliest_tokens(llm):
    answer = next(llm.answers(["Name three colors."], max_new_tokens=5, top_logprobs=3))
    [tokens] = answer.logprobs
    assert "".join(token.token for token in tokens) == answer.text
    for token in tokens:
        assert [text for text, _ in token.top][0] == token.token
        assert len(token.top) == 3
        assert sorted((p for _, p in token.top), reverse=True) == [p for _, p in token.top]
        assert sum(math.exp(p) for _, p in token.top) <= 1 + 1e-5
    chosen_only = next(llm.answers(["Name three colors."], max_new_tokens=5, top_logprobs=0))
    assert [t.logprob for t in chosen_only.logprobs[0]] == pytest.approx([t.logprob for t in tokens], abs=1e-4)
    assert all(token.top == () for token in chosen_only.logprobs[0])


@pytest.mark.parametrize("template", ["auto", None])
def test_a_json_schema_is_kept_to(llm, template):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 99}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    asked = llm if template == "auto" else _copy(llm, chat_prompt_template=None)
    [text] = asked.run(["Describe a city as JSON."], max_new_tokens=80, schema=schema)
    found = json.loads(text)
    assert set(found) == {"city", "people"}
    assert isinstance(found["people"], int)


def test_bad_rows_do_not_end_a_run(llm):
    prompts = ["Hi.", "word " * 400, "broken \ud800 text", "Tell me a long story. " * 30, ""]
    answers = list(llm.answers(prompts, max_new_tokens=150))
    assert [type(answer.error) for answer in answers] == [
        type(None),
        PromptTooLong,
        BadRequest,
        PromptTooLong,
        type(None),
    ]
    assert "256" in str(answers[1].error)
    assert "max_new_tokens" in str(answers[3].error)


def test_tokens_outside_the_vocabulary_are_refused(llm):
    size = 49_152
    llm.check(Sampling(logit_bias={size - 1: -1.0}))
    with pytest.raises(DefinitionError, match=f"logit_bias names the token {size}; .* has {size} tokens"):
        llm.run(["Hi."], max_new_tokens=1, logit_bias={size: -100.0})


def test_stop_logit_bias_and_repetition_penalty_reach_the_sampler(llm):
    [plain] = llm.answers(["Count from 1 to 9."], max_new_tokens=24)
    [stopped] = llm.run(["Count from 1 to 9."], max_new_tokens=24, stop=["3"])
    assert stopped == plain.text.split("3")[0].strip()
    first = llm.server.tokenize(plain.text)[0]
    [banned] = llm.run(["Count from 1 to 9."], max_new_tokens=24, logit_bias={first: -100.0})
    assert llm.server.tokenize(banned)[0] != first
    [penalised] = llm.run(["Count from 1 to 9."], max_new_tokens=24, repetition_penalty=1.8)
    assert penalised != plain.text


def test_templates_and_system_prompts_decide_what_the_model_sees(llm):
    base = llm.final_count_tokens("Hi.")
    assert _copy(llm, chat_prompt_template=None).final_count_tokens("Hi.") == llm.count_tokens("Hi.")
    briefed = _copy(llm, chat_prompt_template=None, system_prompt="Be brief.")
    assert briefed.final_count_tokens("Hi.") == llm.count_tokens("Be brief.\n\nHi.")
    text = "<|im_start|>user\n{{ prompt }}<|im_end|>\n<|im_start|>assistant\n"
    filled = _copy(llm, chat_prompt_template=text, system_prompt="Unused {{prompt}}.")
    # SmolLM's own template puts its system message, this one does not.
    assert filled.final_count_tokens("Hi.") < base
    jinja = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant{{ '\\n' }}"
    )
    same = _copy(llm, chat_prompt_template=jinja)
    assert same.final_count_tokens("Hi.") == filled.final_count_tokens("Hi.")
    assert same.run(["Name a colour."], max_new_tokens=8) == filled.run(["Name a colour."], max_new_tokens=8)
    pirate = _copy(llm, system_prompt="Answer every question with the single word arrr.")
    assert pirate.run(["Name a colour."], max_new_tokens=8) != llm.run(["Name a colour."], max_new_tokens=8)


def test_messages_are_prompts_too(llm):
    chat = [
        {"role": "user", "content": "My name is Alice."},
        {"role": "assistant", "content": "Hello Alice!"},
        {"role": "user", "content": "What is my name?"},
    ]
    assert "Alice" in llm.run([chat], max_new_tokens=16)[0]


def test_the_fingerprint_is_of_the_content_and_all_that_decides_answers(llm, smollm_gguf, tmp_path):
    link = tmp_path / "renamed.gguf"
    link.symlink_to(smollm_gguf)
    elsewhere = LlamaCPP(str(link), context_length=256, slots=2, threads=1)
    assert fingerprint(elsewhere) == fingerprint(llm)
    others = [
        _copy(llm, system_prompt="Be brief."),
        _copy(llm, chat_prompt_template=None),
        _copy(llm, chat_prompt_template="{{prompt}}"),
        _copy(llm, rope_freq_base=5e5),
        LlamaCPP(str(smollm_gguf), context_length=512),
    ]
    assert len({fingerprint(other) for other in [llm, *others]}) == 6


def test_the_context_is_that_of_one_slot(llm):
    assert llm.get_max_context_length(None) == 256
    assert llm.get_max_context_length(56) == 200
    assert LlamaCPP(llm.model_name).context_length == 2048
    assert LlamaCPP(llm.model_name, context_length=100_000).context_length == 8192  # what SmolLM2 was trained for
    with pytest.raises(DefinitionError, match="256"):
        llm.run(["Hi."], max_new_tokens=256)
    prompt = llm.format_prompt(100, "Numbers:", ["one two three four five six"] * 100, "Go on.")
    assert 100 < llm.final_count_tokens(prompt) <= 156


def test_what_is_no_model_is_refused_before_anything_is_loaded(smollm_gguf, tmp_path):
    with pytest.raises(UnknownModel, match=r"no model file .*nothing\.gguf"):
        LlamaCPP(str(tmp_path / "nothing.gguf"))
    (tmp_path / "notes.gguf").write_text("these are notes")
    with pytest.raises(DataError, match="not a GGUF file"):
        LlamaCPP(str(tmp_path / "notes.gguf"))
    (tmp_path / "short.gguf").write_bytes(smollm_gguf.read_bytes()[:1000])
    with pytest.raises(DataError, match="cut off"):
        LlamaCPP(str(tmp_path / "short.gguf"))
    with pytest.raises(DefinitionError, match=r"several.*notes\.gguf, short\.gguf"):
        LlamaCPP(str(tmp_path))
    with pytest.raises(UnknownModel, match=r'Did you mean "short\.gguf"'):
        LlamaCPP(str(tmp_path), model_file="shrt.gguf")
    with pytest.raises(DefinitionError, match='no option "context_size"'):
        LlamaCPP(str(smollm_gguf), context_size=10)
    for name, own in {"chat_template": "chat_prompt_template", "n_ctx": "context_length"}.items():
        with pytest.raises(DefinitionError, match=f'no option "{name}". Give {own} instead'):
            LlamaCPP(str(smollm_gguf), **{name: None})
    with pytest.raises(DefinitionError, match="slots cannot be 0"):
        LlamaCPP(str(smollm_gguf), slots=0)


def test_a_file_cut_off_after_its_header_is_one_clear_error(smollm_gguf, tmp_path):
    (tmp_path / "half.gguf").write_bytes(smollm_gguf.read_bytes()[:40_000_000])
    with pytest.raises(DataError, match=r"cannot load .*half\.gguf.*cut off"):
        LlamaCPP(str(tmp_path / "half.gguf"), slots=2).run(["Hi.", "You.", "All."])


def test_the_header_says_where_the_model_comes_from(llm, smollm_gguf):
    header = read_gguf_header(smollm_gguf)
    assert header["general.architecture"] == "llama"
    assert header.context_length == 8192
    assert llm.license == "apache-2.0"
    assert llm.display_name.startswith("LlamaCPP (")


def test_a_cancelled_request_frees_its_slot(smollm_gguf):
    llm = LlamaCPP(str(smollm_gguf), context_length=2048, slots=1)
    endless = Request("Hi.", Sampling(max_new_tokens=1800, extra={"ignore_eos": True}))

    async def cancel_soon():
        task = asyncio.create_task(llm.answer(endless))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    llm.count_tokens("load")
    threads = set(threading.enumerate())
    started = time.monotonic()
    asyncio.run(cancel_soon())
    assert llm.run(["Hi."], max_new_tokens=2) != [None]
    assert time.monotonic() - started < 10
    llm.unload_model()
    assert set(threading.enumerate()) <= threads


def test_it_is_pickled_without_the_loaded_model(llm):
    expected = llm.run(["Name a fruit."], max_new_tokens=6)
    data = pickle.dumps(llm)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    assert fingerprint(copy) == fingerprint(llm)
    assert copy.run(["Name a fruit."], max_new_tokens=6) == expected
    copy.unload_model()
    assert copy.run(["Name a fruit."], max_new_tokens=6) == expected


def _answer_in_fork(llm, answers):
    answers.put(llm.run(["Name a fruit."], max_new_tokens=6))
    llm.unload_model()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_loads_its_own(llm):
    expected = llm.run(["Name a fruit."], max_new_tokens=6)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=_answer_in_fork, args=(llm, answers))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert answers.get() == expected
    assert llm.run(["Name a fruit."], max_new_tokens=6) == expected


def test_llamacpp_writes_nothing_to_the_terminal(smollm_gguf):
    script = f"""
from datadreamer_like.models.llms.llamacpp import LlamaCPP
llm = LlamaCPP({str(smollm_gguf)!r}, context_length=256, slots=2)
llm.run(["Hi.", "word " * 400, "JSON"], max_new_tokens=4, top_logprobs=1)
llm.run(["Hi."], max_new_tokens=8, schema={{"type": "object"}})
llm.count_tokens("Hi.")
llm.unload_model()
LlamaCPP({str(smollm_gguf)!r}, context_length=256, slots=1).run(["Hi."], max_new_tokens=4)
"""
    script = "import logging\nlogging.getLogger('datadreamer_like').addHandler(logging.NullHandler())\n" + script
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hub's protocol as downloading a file takes."""

    file = b""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        known = {"tiny.Q4.gguf", "README.md"}
        name = self.path.rpartition("/")[2].partition("?")[0]
        if not self.path.startswith(("/me/tiny/resolve/", "/api/models/me/tiny")):
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        if self.path.startswith("/api/models/me/tiny"):
            if "/tree/" in self.path:
                files = [{"type": "file", "path": each, "size": 1, "oid": "0" * 40} for each in sorted(known)]
                return self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"}, body)
            info = {"id": "me/tiny", "sha": "a" * 40, "siblings": [{"rfilename": each} for each in sorted(known)]}
            return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        if name not in known:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        return self._send(200, self.file, {"ETag": '"' + "b" * 40 + '"', "X-Repo-Commit": "a" * 40}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_a_file_is_downloaded_from_the_hub_and_found_again_offline(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_license("mit")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    handler = type("Hub", (_Hub,), {"file": (tmp_path / "tiny.gguf").read_bytes()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = """
import sys
from datadreamer_like.errors import DataDreamerError
from datadreamer_like.models.llms.llamacpp import LlamaCPP
for name, file in [("me/tiny", None), ("me/tiny", "tiny.Q4.gguf"), ("me/tiny", "other.gguf"), ("me/secret", None)]:
    try:
        llm = LlamaCPP(name, file)
        print(llm.path.name, llm.license, llm.context_length, llm.model_card)
    except DataDreamerError as error:
        print(type(error).__name__, error)
"""
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PATH": "",
    }

    def lines() -> list[str]:
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, check=True, cwd=_ROOT
        )
        return done.stdout.splitlines()

    found = "tiny.Q4.gguf mit 64 https://huggingface.co/me/tiny"
    try:
        online = lines()
    finally:
        server.shutdown()
        server.server_close()
    assert online[:2] == [found, found]
    assert [line.partition(" ")[0] for line in online[2:]] == ["UnknownModel", "UnknownModel"]
    assert "other.gguf" in online[2]
    assert "me/secret" in online[3]
    environment["HF_HUB_OFFLINE"] = "1"
    offline = lines()
    assert offline[1] == found
    assert offline[0].startswith("HubError")
    assert offline[2].startswith("HubError")


_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, ProcessLookupError])
def test_it_runs_where_the_system_does_not_list_the_memory_of_processes(error, monkeypatch):
    plain = Path.open

    def open_unless_hidden(path, *args, **options):
        if str(path) == "/proc/self/maps":
            raise error(path)
        return plain(path, *args, **options)

    monkeypatch.setattr(Path, "open", open_unless_hidden)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    module, patient = _xllamacpp()
    assert (module.__name__, patient) == ("xllamacpp", True)
    assert "OMP_WAIT_POLICY" not in os.environ
