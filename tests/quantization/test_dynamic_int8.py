"""Dynamic int8: what is quantized and what is not, that it is AbsMax, that it loads again, and its bytes on disk."""

import copy
import io

import pytest
import torch
import transformers
from tiny_models import build
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from warm import printed_by

from datadreamer_like import pruning
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.formats import layouts
from datadreamer_like.formats.int8 import Int8Embedding, Int8Linear
from datadreamer_like.quantization import DynamicInt8

FAMILIES = ["bert", "bert-mlm", "llama", "qwen2", "gpt2", "t5", "mpnet"]
AUTO = {
    "SequenceClassification": "AutoModelForSequenceClassification",
    "MaskedLM": "AutoModelForMaskedLM",
    "ConditionalGeneration": "AutoModelForSeq2SeqLM",
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch_for(model):
    ids = torch.randint(5, 90, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, 8:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    return {**batch, "decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else batch


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def int8_modules(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear | Int8Embedding)}


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_are_absmax_of_each_row_and_the_model_is_untouched(family):
    model = build(family)
    before = copy.deepcopy(model.state_dict())
    small = DynamicInt8().apply(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not int8_modules(model)
    found = int8_modules(small)
    assert found
    for name, module in found.items():
        original = model.get_submodule(name)
        weight = original.weight.detach()
        weight = (weight.T if isinstance(original, transformers.pytorch_utils.Conv1D) else weight).double().numpy()
        scale = abs(weight).max(1, keepdims=True) / 127
        assert module.weight.dtype == torch.int8
        assert abs(module.weight.numpy() - weight / scale).max() <= 0.5 + 1e-4
        assert abs(module.weight_scale.numpy() / scale - 1).max() < 1e-6
        if isinstance(module, Int8Linear) and original.bias is not None:
            assert torch.equal(module.bias, original.bias)
    batch = batch_for(model)
    kept = (batch["attention_mask"] if "decoder_input_ids" not in batch else torch.ones(3, 4)).bool()
    plain, quantized = logits(model, batch), logits(small, batch)
    if plain.dim() == 3:
        plain, quantized = plain[kept], quantized[kept]
    assert 0 < float((plain - quantized).norm() / plain.norm()) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_its_codes_say(family):
    # The same model in fp32 with the weights that the codes stand for differs only by the rounding of activations.
    model = build(family)
    small = DynamicInt8().apply(model)
    stands_for = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in int8_modules(small).items():
            original = stands_for.get_submodule(name)
            weight = module.dequantized()
            original.weight.copy_(weight.T if isinstance(original, transformers.pytorch_utils.Conv1D) else weight)
    batch = batch_for(model)
    wanted, found = logits(stands_for, batch), logits(small, batch)
    rows = slice(0, 2)  # without padding
    assert float((wanted - found)[rows].norm() / wanted[rows].norm()) < 0.03


LOADER = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
import torch, transformers
transformers.logging.disable_progress_bar()
import datadreamer_like.quantization
torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    auto = json.loads((folder / "auto.json").read_text())
    batch = torch.load(folder / "batch.pt")
    model, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        found = {"fp32": model(**batch).logits}
    low = getattr(transformers, auto).from_pretrained(folder, dtype=torch.bfloat16)
    scales = [value.dtype for name, value in low.state_dict().items() if name.endswith("weight_scale")]
    assert scales and set(scales) == {torch.float32}, scales
    with torch.no_grad():
        found["bf16"] = low(**batch).logits
    assert found["bf16"].dtype == torch.bfloat16
    model.save_pretrained(folder / "again")
    torch.save(found, folder / "logits.pt")
"""


def variants():
    for family in FAMILIES:
        yield family, DynamicInt8().apply(build(family))
    yield "llama-no-embeddings", DynamicInt8(embeddings=False).apply(build("llama"))
    yield "qwen2-head", DynamicInt8(lm_head=True, granularity="tensor").apply(build("qwen2"))
    bert = build("bert")
    heads = pruning.Heads(sparsity=0.4).apply(bert, [{**batch_for(bert), "labels": torch.tensor([0, 1, 2])}])
    yield "bert-heads", DynamicInt8().apply(heads)
    sparse = pruning.Magnitude(sparsity=0.8, include=("embeddings",)).apply(heads)
    yield "bert-heads-sparse", DynamicInt8().apply(sparse)


def test_saved_models_load_in_a_fresh_process_with_equal_logits(tmp_path):
    expected = {}
    for name, model in variants():
        folder, batch = tmp_path / name, batch_for(model)
        expected[name] = (model, logits(model, batch))
        model.save_pretrained(folder)
        auto = next((v for k, v in AUTO.items() if k in type(model).__name__), "AutoModelForCausalLM")
        (folder / "auto.json").write_text(f'"{auto}"')
        torch.save(batch, folder / "batch.pt")
    printed_by(LOADER, str(tmp_path), plain=True)
    for name, (_, wanted) in expected.items():
        found = torch.load(tmp_path / name / "logits.pt")
        assert torch.equal(found["fp32"], wanted), name
        assert float((found["bf16"].float() - wanted).norm() / wanted.norm()) < 0.1, name
        one, other = (tmp_path / name / part / "model.safetensors" for part in ("", "again"))
        assert one.read_bytes() == other.read_bytes(), name
    whole = (tmp_path / "bert-heads" / "model.safetensors").stat().st_size
    assert (tmp_path / "bert-heads-sparse" / "model.safetensors").stat().st_size < 0.8 * whole


def test_a_tied_head_has_the_codes_of_the_embedding_and_is_stored_once(tmp_path):
    small = DynamicInt8().apply(build("llama"))
    assert small.lm_head.weight.data_ptr() == small.model.embed_tokens.weight.data_ptr()
    small.save_pretrained(tmp_path)
    with (tmp_path / "model.safetensors").open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    assert b'"lm_head.weight"' not in header
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    copied = copy.deepcopy(again)
    copied.load_state_dict(again.state_dict())
    assert copied.lm_head.weight.data_ptr() == copied.model.embed_tokens.weight.data_ptr()


def test_the_head_of_a_language_model_is_quantized_only_when_asked_for():
    model = build("qwen2")
    assert type(DynamicInt8().apply(model).lm_head) is nn.Linear
    assert type(DynamicInt8(lm_head=True).apply(model).lm_head) is Int8Linear
    tied = build("llama")
    assert type(DynamicInt8(embeddings=False).apply(tied).lm_head) is nn.Linear
    with pytest.raises(MethodMisfit, match='"lm_head" is tied'):
        DynamicInt8(embeddings=False, lm_head=True).apply(tied)
    assert type(DynamicInt8().apply(build("bert")).classifier) is Int8Linear


def test_positions_are_left_alone_and_so_is_what_is_excluded():
    model = build("bert")
    small = DynamicInt8(exclude=("classifier", "bert.encoder.layer.0", "*.value")).apply(model)
    assert type(small.bert.embeddings.position_embeddings) is nn.Embedding
    assert type(small.bert.embeddings.word_embeddings) is Int8Embedding
    assert type(small.classifier) is nn.Linear
    assert not any(name.startswith("bert.encoder.layer.0") or name.endswith("value") for name in int8_modules(small))
    assert "bert.encoder.layer.1.attention.self.query" in int8_modules(small)


def test_minilm_keeps_its_directions_and_takes_a_quarter_of_the_bytes(minilm_path, tmp_path):
    tokenizer, model = AutoTokenizer.from_pretrained(minilm_path), AutoModel.from_pretrained(minilm_path).eval()
    small = DynamicInt8().apply(model)
    texts = [
        "A fast HTTP client with connection pooling and retries.",
        "Parses command lines.",
        "Numerical solvers for stiff differential equations, with automatic differentiation and GPU support.",
        "The cat sat on the warm mat.",
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    weights = batch["attention_mask"][..., None].float()
    with torch.no_grad():
        one, other = ((m(**batch).last_hidden_state * weights).sum(1) for m in (model, small))
    assert torch.cosine_similarity(one, other).min() > 0.98
    model.save_pretrained(tmp_path / "fp32")
    small.save_pretrained(tmp_path / "int8")
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("fp32", "int8")]
    assert sizes[1] < 0.27 * sizes[0]


def test_a_trained_causal_lm_goes_on_saying_the_same(tiny_causal_lm):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    small = DynamicInt8().apply(model)
    prompt = tokenizer("<bos>The cat sat", return_tensors="pt", add_special_tokens=False)
    one, other = (m.generate(**prompt, max_new_tokens=8, do_sample=False) for m in (model, small))
    assert torch.equal(one, other)


def test_scales_stay_fp32_and_copies_pickles_and_casts_compute_alike():
    model = build("bert")
    small = DynamicInt8().apply(model)
    batch = batch_for(small)
    wanted = logits(small, batch)  # has packed its weights by now
    assert torch.equal(logits(copy.deepcopy(small), batch), wanted)
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    assert torch.equal(logits(torch.load(buffer, weights_only=False), batch), wanted)
    plain = DynamicInt8().apply(nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4))).to(torch.bfloat16)
    assert plain[1].weight_scale.dtype == plain[0].weight_scale.dtype == torch.float32
    assert plain(torch.tensor([1, 2])).dtype == torch.bfloat16


def test_changed_weights_are_packed_anew():
    small = DynamicInt8().apply(build("bert"))
    batch = batch_for(small)
    other = build("bert")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    other = DynamicInt8().apply(other)
    assert not torch.equal(logits(small, batch), logits(other, batch))
    small.load_state_dict(other.state_dict())
    assert torch.equal(logits(small, batch), logits(other, batch))


def test_a_plain_module_is_quantized_with_what_it_shares():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(12, 8, padding_idx=0)
            self.one = nn.Linear(8, 8)
            self.same = self.one
            self.head = nn.Linear(8, 12, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.same(self.one(self.embedding(ids))))

    torch.manual_seed(0)
    model, ids = Plain(), torch.tensor([[1, 2, 0]])
    small = DynamicInt8().apply(model)
    assert small.one is small.same
    assert small.head.weight is small.embedding.weight
    assert layouts(small)[0]["kind"] == "int8"
    with torch.no_grad():
        assert float((model(ids) - small(ids)).norm() / model(ids).norm()) < 0.05


def test_pytorchs_fused_encoder_layer_and_attention_still_work():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu").eval()
    small = DynamicInt8().apply(model)
    assert sorted(int8_modules(small)) == ["linear1", "linear2"]
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        assert float((model(x) - small(x)).norm() / model(x).norm()) < 0.05


def test_gradients_pass_through_to_what_is_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    small = DynamicInt8(exclude=("0",)).apply(model)
    small(torch.randn(3, 6)).square().sum().backward()
    assert small[0].weight.grad.any()


def test_misfits_are_refused_with_a_reason():
    model = build("bert")
    small = DynamicInt8().apply(model)
    with pytest.raises(MethodMisfit, match="already"):
        DynamicInt8().apply(small)
    with pytest.raises(MethodMisfit, match=r"no nn\.Linear"):
        DynamicInt8().apply(nn.ReLU())
    broken = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        broken[0].weight[1, 1] = float("nan")
    with pytest.raises(MethodMisfit, match='"0" holds'):
        DynamicInt8().apply(broken)
    with pytest.raises(DefinitionError, match="granularity"):
        DynamicInt8(granularity="row")
    with pytest.raises(DefinitionError, match="tuple"):
        DynamicInt8(exclude="classifier")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_adapters_are_to_be_merged_first():
    import peft

    adapted = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    assert "merge_and_unload" in DynamicInt8().why_not(adapted)
    assert DynamicInt8().why_not(adapted.merge_and_unload()) is None


def test_the_example_is_deterministic():
    model = build("bert")
    one, other = (DynamicInt8.example().apply(model).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
