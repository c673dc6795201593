from __future__ import annotations

import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch

from datadreamer_like.errors import (
    ArgumentTypeError,
    BadRequest,
    DataError,
    DefinitionError,
    MethodMisfit,
    PromptTooLong,
    UnknownModel,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models.calls.batch_engine import is_out_of_memory
from datadreamer_like.models.llms.hf_transformers import HFTransformers
from datadreamer_like.models.trained.hf_source import hf_source

BEGINNINGS = ["The cat sat", "A dog", "The bird", "Rain fell", "She read", "He wrote", "The train was", "We drank hot"]
SAMPLED = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def llm(tiny_causal_lm):
    return HFTransformers(str(tiny_causal_lm), device="cpu")


@pytest.fixture(scope="module")
def plain(tiny_causal_lm):
    """The same model without its chat template: it goes on with what it is given."""
    return HFTransformers(tiny_causal_lm, chat_prompt_template="<bos>{{prompt}}", device="cpu")


@pytest.fixture(scope="module")
def seq2seq(tiny_seq2seq):
    return HFTransformers(str(tiny_seq2seq), device="cpu")


def _alone(llm: HFTransformers, text: str, max_new_tokens: int) -> str:
    """What transformers itself gives for one prompt."""
    ids = llm.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        out = llm.model.generate(input_ids=ids, max_new_tokens=max_new_tokens, do_sample=False)
    return llm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_batch_gives_what_each_prompt_gives_alone(plain):
    answers = list(plain.answers(BEGINNINGS, max_new_tokens=12, batch_size=8))
    assert [answer.text for answer in answers] == [_alone(plain, f"<bos>{text}", 12).strip() for text in BEGINNINGS]
    assert answers[0].text == "on the warm mat."
    assert answers[0].finish_reasons == ["stop"]
    assert answers[0].prompt_tokens == len(plain.tokenizer("<bos>The cat sat")["input_ids"])
    assert answers[0].completion_tokens == len(plain.tokenizer(" on the warm mat.")["input_ids"]) + 1


def test_the_chat_template_is_applied(llm):
    assert llm.run(["The cat sat on the warm mat."], max_new_tokens=20) == ["The cat sat on the warm mat."]
    expected = llm.tokenizer("<|user|>Hi.<eos><|assistant|>")["input_ids"]
    assert llm.final_count_tokens("Hi.") == len(expected)
    briefed = HFTransformers(llm.model_name, system_prompt="Be brief.")
    expected = llm.tokenizer("<|system|>Be brief.<eos><|user|>Hi.<eos><|assistant|>")["input_ids"]
    assert briefed.final_count_tokens("Hi.") == len(expected)
    shouted = HFTransformers(llm.model_name, chat_prompt_template="{{ messages[0].content | upper }}")
    assert shouted.final_count_tokens("hi.") == llm.count_tokens("HI.")


def test_a_sequence_to_sequence_model_answers(seq2seq):
    assert seq2seq.run(["Rain fell on the quiet town.<eos>"], max_new_tokens=20) == ["Rain fell on the quiet town."]
    assert seq2seq.get_max_context_length(100) == 128
    [cut] = seq2seq.answers(["Rain fell on the quiet town.<eos>"], max_new_tokens=3, top_logprobs=0)
    assert cut.finish_reasons == ["length"]
    assert "".join(token.token for token in cut.logprobs[0]) == cut.text


def test_a_seed_gives_the_same_texts_in_any_batch(plain):
    together = plain.run(BEGINNINGS, seed=7, batch_size=8, **SAMPLED)
    one_by_one = plain.run(BEGINNINGS, seed=7, batch_size=1, force=True, **SAMPLED)
    assert together == one_by_one
    assert together != plain.run(BEGINNINGS, seed=8, **SAMPLED)


def test_n_texts_differ_and_follow_each_others_seeds(plain):
    [three] = plain.run(["The"], seed=1, n=3, **SAMPLED)
    assert len(set(three)) > 1
    assert three[1] == plain.run(["The"], seed=2, **SAMPLED)[0]
    [greedy] = plain.answers(["The"], n=3, max_new_tokens=4, top_logprobs=0)
    assert len(set(greedy.texts)) == 1
    assert len(greedy.texts) == len(greedy.logprobs) == 3


def test_drawn_tokens_follow_temperature_and_nucleus(plain):
    """Shares over 2,000 draws against the softmax, computed by hand."""
    [first] = plain.answers(["The"], max_new_tokens=1, top_logprobs=420)
    top = first.logprobs[0][0].top
    weights = [math.exp(logprob / 1.5) for _, logprob in top]
    probabilities = [weight / sum(weights) for weight in weights]
    kept = next(k for k in range(1, len(top)) if sum(probabilities[:k]) >= 0.8)
    [drawn] = plain.answers(["The"], max_new_tokens=1, temperature=1.5, top_p=0.8, n=2000, seed=3)
    nucleus: dict[str, float] = {}
    for (token, _), probability in zip(top[:kept], probabilities, strict=False):
        text = "" if token.startswith("<") else token.strip()  # special tokens end a text or are left out of it
        nucleus[text] = nucleus.get(text, 0) + probability / sum(probabilities[:kept])
    assert {text or "" for text in drawn.texts} <= set(nucleus)  # a lone special token is no text
    for text, expected in nucleus.items():
        share = sum((each or "") == text for each in drawn.texts) / 2000
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 2000) + 1e-3)


def test_log_probabilities_are_the_models_own(plain):
    [answer] = plain.answers(["Rain fell"], max_new_tokens=5, top_logprobs=2, repetition_penalty=1.2)
    prompt = plain.tokenizer("<bos>Rain fell", return_tensors="pt")["input_ids"]
    new = plain.tokenizer(f" {answer.text}", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = plain.model(input_ids=torch.cat([prompt, new], dim=1)).logits[0]
    expected = logits.log_softmax(-1)[prompt.shape[1] - 1 : -1]
    [tokens] = answer.logprobs
    own = [token.logprob for token in tokens]
    assert own == pytest.approx(expected.gather(1, new[0][:, None])[:, 0].tolist(), abs=1e-4)
    assert [token.top[0][1] for token in tokens] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)


def test_stop_bias_and_penalty_reach_the_sampler(plain):
    [stopped] = plain.answers(["The cat sat"], max_new_tokens=12, stop=["warm", "zebra"])
    assert stopped.text == "on the"
    assert stopped.finish_reasons == ["stop"]
    assert stopped.completion_tokens < 8
    first = plain.tokenizer(" on")["input_ids"][0]
    [banned] = plain.run(["The cat sat"], max_new_tokens=1, logit_bias={first: -1000.0})
    assert not banned.startswith("on")
    [penalised] = plain.run(["The the the the"], max_new_tokens=6, repetition_penalty=50.0)
    assert "the" not in penalised


def test_bad_rows_do_not_end_a_run(llm):
    prompts = ["The cat sat on the warm mat.", "far too long " * 60, "half a \ud83d character", ""]
    answers = list(llm.answers(prompts, max_new_tokens=20))
    assert [type(answer.error) for answer in answers] == [type(None), PromptTooLong, BadRequest, type(None)]
    assert "room for 108" in str(answers[1].error)
    with pytest.raises(PromptTooLong):
        llm.run(prompts, max_new_tokens=20, on_error="raise")


def test_what_cannot_be_honoured_is_refused_before_loading(tiny_causal_lm):
    llm = HFTransformers(str(tiny_causal_lm))
    with pytest.raises(DefinitionError, match='no option "chat_template". Give chat_prompt_template'):
        HFTransformers(str(tiny_causal_lm), chat_template=None)
    with pytest.raises(DefinitionError, match="constrain answers to a schema"):
        llm.run(["Hi."], schema={"type": "object"})
    with pytest.raises(DefinitionError, match="128"):
        llm.run(["Hi."], max_new_tokens=128)
    assert "model" not in vars(llm)


def test_out_of_memory_halves_the_batch(tiny_causal_lm):
    llm = HFTransformers(str(tiny_causal_lm), chat_prompt_template="<bos>{{prompt}}")
    sizes = []
    generate = llm.model.generate

    def limited(**options):
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("none left")
        return generate(**options)

    llm.model.generate = limited
    answers = llm.run(BEGINNINGS, max_new_tokens=12, batch_size=8)
    assert answers[0] == "on the warm mat."
    assert None not in answers
    assert sizes == [8, 4, 2, 2, 2, 2]


def test_a_prompt_that_fits_alone_leaves_the_others_whole_batches(tiny_causal_lm):
    llm = HFTransformers(str(tiny_causal_lm), chat_prompt_template="<bos>{{prompt}}")
    sizes = []
    generate = llm.model.generate

    def limited(**options):
        sizes.append(tuple(options["input_ids"].shape))
        if options["input_ids"].numel() > 150:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        return generate(**options)

    llm.model.generate = limited
    prompts = [*BEGINNINGS, "the cat sat on the mat and " * 12, *BEGINNINGS[::-1]]
    answers = llm.run(prompts, max_new_tokens=2, batch_size=8, seed=0, temperature=1.0, top_p=1.0)
    assert None not in answers
    done = [shape for shape in sizes if shape[0] * shape[1] <= 150]
    assert done[0][0] == 1
    assert [rows for rows, _ in done[1:]] == [8, 8]
    with pytest.raises(RuntimeError, match="allocate"):
        llm.run(prompts, max_new_tokens=2, batch_size=8, adaptive_batch_size=False, force=True)


def test_memory_that_runs_out_is_known_by_the_libraries_own_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    for words in (
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 18.00 GB)",
    ):
        assert is_out_of_memory(RuntimeError(words))
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(caught.value)


def test_the_fingerprint_is_of_the_content_and_all_that_decides_answers(tiny_causal_lm, tiny_seq2seq, tmp_path):
    copied = shutil.copytree(tiny_causal_lm, tmp_path / "copy")
    one = HFTransformers(str(tiny_causal_lm))
    assert fingerprint(HFTransformers(copied, device="cpu")) == fingerprint(one)
    fetched = HFTransformers(copied, token="hf_secret", cache_dir=str(tmp_path))
    assert fingerprint(fetched) == fingerprint(one)
    assert fetched.config.vocab_size == one.config.vocab_size
    others = [
        HFTransformers(str(tiny_causal_lm), system_prompt="Be brief."),
        HFTransformers(str(tiny_causal_lm), chat_prompt_template=None),
        HFTransformers(str(tiny_causal_lm), dtype=torch.bfloat16),
        HFTransformers(str(tiny_seq2seq)),
    ]
    assert len({fingerprint(other) for other in [one, *others]}) == 5
    (copied / "generation_config.json").write_text("{}")
    assert fingerprint(HFTransformers(copied)) != fingerprint(one)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_changes_answers_and_fingerprint(tiny_causal_lm, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=5.0)
    adapted.save_pretrained(tmp_path)
    plain = HFTransformers(str(tiny_causal_lm))
    with_adapter = HFTransformers(str(tiny_causal_lm), adapter_name=str(tmp_path))
    assert fingerprint(with_adapter) != fingerprint(plain)
    prompt = "The cat sat on the warm mat."
    assert with_adapter.run([prompt], max_new_tokens=12) != plain.run([prompt], max_new_tokens=12)


def test_sources_of_a_model(tiny_causal_lm, tmp_path):
    class Trained:
        path = str(tiny_causal_lm)

    assert hf_source(Trained()).name == str(tiny_causal_lm)
    (tmp_path / "node").mkdir()
    shutil.copytree(tiny_causal_lm, tmp_path / "node" / "model")
    assert hf_source(tmp_path / "node").name == str(tmp_path / "node" / "model")
    assert hf_source("me/model", "main").options == {"revision": "main"}
    assert hf_source("me/model").model_card == "https://huggingface.co/me/model"
    with pytest.raises(UnknownModel, match=r"no config\.json"):
        hf_source(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match='config.json: "model_type" is missing'):
        HFTransformers(tmp_path).run(["Hi."])
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n```bibtex\n@article{me,\n  title={It}\n}\n```\n")
    assert hf_source(tmp_path).license == "mit"
    assert hf_source(tmp_path).citation == ["@article{me,\n  title={It}\n}"]
    with pytest.raises(UnknownModel, match="no model folder"):
        hf_source(tmp_path / "nothing")
    with pytest.raises(UnknownModel, match="no model file"):
        hf_source(tmp_path / "nothing.gguf")
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(DataError, match="not a GGUF file"):
        HFTransformers(tmp_path / "text.gguf")
    with pytest.raises(ArgumentTypeError):
        hf_source(3)


def test_it_is_pickled_without_the_loaded_model(plain):
    expected = plain.run(["A dog"], max_new_tokens=8)
    data = pickle.dumps(plain)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    assert copy.run(["A dog"], max_new_tokens=8) == expected
    copy.unload_model()
    assert "model" not in vars(copy)
    assert copy.run(["A dog"], max_new_tokens=8) == expected


def test_a_gguf_file_runs_as_it_does_on_llamacpp(smollm_gguf, tmp_path):
    from datadreamer_like.models import LlamaCPP, TrainedModel

    texts = ["a small cat sat on", "dogs run in the park", "the quick brown fox"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = tiny_models.byte_pairs(texts, 300, ["<s>", "</s>", "<pad>"], model_max_length=64, **names)
    model = tiny_models.llama(tokenizer, hidden_size=256, intermediate_size=512, seed=1)
    file = TrainedModel.save(model, tokenizer, tmp_path / "it").export("gguf", to=tmp_path / "export") / "model.gguf"
    native = LlamaCPP(str(file), context_length=64, slots=2, chat_prompt_template=None)
    llm = HFTransformers(str(file), device="cpu", chat_prompt_template=None)
    answers, natives = (list(each.answers(texts, max_new_tokens=6, top_logprobs=0)) for each in (llm, native))
    assert [answer.prompt_tokens for answer in answers] == [answer.prompt_tokens for answer in natives]
    for answer, other in zip(answers, natives, strict=True):
        assert answer.logprobs[0][0].token == other.logprobs[0][0].token
        assert answer.logprobs[0][0].logprob == pytest.approx(other.logprobs[0][0].logprob, abs=0.05)
    native.unload_model()
    assert HFTransformers(str(smollm_gguf)).license == "apache-2.0"


def test_loading_and_answering_write_nothing_to_the_terminal(tiny_causal_lm):
    script = f"""
from datadreamer_like.graph.session import DataDreamer
from datadreamer_like.models.calls.batch_engine import is_out_of_memory
from datadreamer_like.models.llms.hf_transformers import HFTransformers
with DataDreamer(":memory:", verbose=False):
    llm = HFTransformers({str(tiny_causal_lm)!r})
    llm.run(["Hi.", "You."], max_new_tokens=4, n=2, temperature=1.0, top_p=0.9, stop=["x"])
    llm.run(["Hi."], max_new_tokens=4)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_an_encoder_is_refused(minilm_path: Path) -> None:
    with pytest.raises(MethodMisfit, match=r"is an encoder \(bert\) and writes no text"):
        HFTransformers(str(minilm_path)).run(["a"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:99"}, "device"),
        ({"device": ["cuda:98", "cuda:99"]}, "device"),
        ({"device": []}, "device"),
        ({"device": "meta"}, "device"),
        ({"device": 1.5}, "device"),
        ({"dtype": "floaty"}, "dtype"),
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": 16}, "dtype"),
    ],
)
def test_a_device_or_type_that_cannot_be_is_refused_before_the_model_is_loaded(tiny_causal_lm, options, words):
    with pytest.raises(DefinitionError, match=words):
        HFTransformers(tiny_causal_lm, **options).run(["a"], cache_only=True)


def test_spellings_of_transformers(plain):
    greedy = plain.run(["Rain fell"], max_new_tokens=6)
    assert plain.run(["Rain fell"], max_new_tokens=6, do_sample=False, temperature=1.0, top_p=1.0) == greedy
    assert plain.run(["Rain fell"], max_new_tokens=6, do_sample=True) == greedy
    beams = plain.run(["Rain fell", "A much longer prompt fell"], max_new_tokens=6, num_beams=3)
    alone = plain.run(["Rain fell"], max_new_tokens=6, num_beams=3, force=True)
    assert beams[:1] == alone
    with pytest.raises(DefinitionError, match="num_beams"):
        plain.run(["Rain fell"], num_beams=3, top_p=1.0)
    with pytest.raises(DefinitionError, match="logit_bias names the token"):
        plain.run(["Rain fell"], logit_bias={10**7: 1.0})


@pytest.mark.parametrize(
    "missing", [("pad_token",), ("pad_token", "eos_token"), ("pad_token", "eos_token", "bos_token")]
)
def test_a_tokenizer_without_special_tokens_pads_with_a_masked_id(tiny_causal_lm, missing):
    prompts = ["Rain", "Rain fell on the old house", "A b c"]

    def model():
        llm = HFTransformers(tiny_causal_lm, chat_prompt_template=None)
        for name in (*missing, "unk_token"):
            setattr(llm.tokenizer, name, None)
        return llm

    together = model().run(prompts, max_new_tokens=4, batch_size=3)
    assert together == [model().run([prompt], max_new_tokens=4, force=True)[0] for prompt in prompts]
    (empty,) = model().answers([""], max_new_tokens=2)
    assert (empty.error is None) == ("bos_token" not in missing)


def test_a_template_that_refuses_the_system_prompt_ends_the_run_before_a_row(tiny_causal_lm):
    template = "{{ raise_exception('no system') if messages[0].role == 'system' }}{{ messages[0].content }}"
    llm = HFTransformers(tiny_causal_lm, chat_prompt_template=template, system_prompt="Be brief.")
    with pytest.raises(DefinitionError, match=r"no system.*leave system_prompt out"):
        llm.run(["Hi", "Ho"], max_new_tokens=2)
    assert len(HFTransformers(tiny_causal_lm, chat_prompt_template=template).run(["Hi"], max_new_tokens=2)) == 1


@pytest.mark.filterwarnings("ignore")  # bitsandbytes reports kernels that CPUs lack
def test_weights_are_quantized_while_loading_and_placed_by_a_map(tiny_causal_lm, plain):
    from transformers import BitsAndBytesConfig

    options = {"chat_prompt_template": "<bos>{{prompt}}"}
    expected = plain.run(BEGINNINGS, max_new_tokens=6)
    mapped = HFTransformers(tiny_causal_lm, device_map={"": "cpu"}, **options)
    assert mapped.run(BEGINNINGS, max_new_tokens=6, force=True) == expected
    assert mapped.model.device.type == "cpu"
    assert fingerprint(mapped) == fingerprint(plain)
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    small = HFTransformers(tiny_causal_lm, device="cpu", quantization_config=config, **options)
    assert small.model.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    assert fingerprint(small) != fingerprint(plain)
    same = sum(one == other for one, other in zip(small.run(BEGINNINGS, max_new_tokens=6), expected, strict=True))
    assert same >= len(BEGINNINGS) / 2


@pytest.mark.parametrize("config", ["{bad", "[]", '{"r": 8}'])
def test_a_damaged_config_of_an_adapter_is_named(config, tmp_path, tiny_causal_lm):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(DataError, match=r"adapter_config\.json is not the config of an adapter"):
        HFTransformers(str(tiny_causal_lm), adapter_name=str(tmp_path))
