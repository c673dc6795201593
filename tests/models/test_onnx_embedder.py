from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DefinitionError, MethodMisfit, MissingExtra, StorageError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import (
    EmbeddingRetriever,
    ParallelEmbedder,
    SentenceTransformersEmbedder,
    TrainedModel,
)
from datadreamer_like.quantization import NF4
from datadreamer_like.stages import Quantize
from datadreamer_like.steps import DataSource, Embed

TEXTS = [
    "A cat sat on the mat.",
    "",
    "x",
    "Parses command lines.",
    "Übergrößenträger 🙂 日本語",
    "The quick brown fox jumps over the lazy dog, again and again, until both of them are tired. " * 3,
    "numbers: 3.14 and 12",
    "A cat sat on the mat.",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a head and without modules of an embedder."""
    folder, tokenizer = tmp_path_factory.mktemp("encoder") / "model", tiny_models.word_pieces(TEXTS)
    tiny_models.save(tiny_models.bert(tokenizer, transformers.BertModel), tokenizer, folder)
    return folder


def saved(encoder: Path, folder: Path, *modules: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """The folder of an embedder with these modules after the encoder."""
    first = Transformer(str(encoder), model_kwargs={"dtype": dtype}, max_seq_length=48)
    SentenceTransformer(modules=[first, *modules], device="cpu", **options).to(dtype).save(str(folder))
    return folder


def graph_of(folder: Path, precision: str = "fp32") -> Path:
    """The graph of an embedder, next to its folder."""
    return TrainedModel.load(folder).export("onnx", to=f"{folder}-{precision}", precision=precision, texts=TEXTS)


def vectors(embedder: Any, **options: Any) -> np.ndarray[Any, Any]:
    return np.stack(embedder.run(TEXTS, truncate=True, **options))


@pytest.fixture(scope="module")
def embedder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    modules = Pooling(32, pooling_mode="cls"), Dense(32, 24), Normalize()
    return saved(encoder, tmp_path_factory.mktemp("embedder") / "model", *modules)


@pytest.fixture(scope="module")
def graph(embedder: Path) -> Path:
    return graph_of(embedder)


@pytest.fixture(scope="module")
def int8(embedder: Path) -> Path:
    return graph_of(embedder, "int8")


@pytest.fixture(scope="module")
def with_heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Graphs of models with a head, by what it is for."""
    tokenizer, folder = tiny_models.word_pieces(TEXTS), tmp_path_factory.mktemp("heads")
    for task in (tasks := ("SequenceClassification", "TokenClassification", "MaskedLM")):
        tiny_models.save(tiny_models.bert(tokenizer, getattr(transformers, f"BertFor{task}")), tokenizer, folder / task)
    return {task: graph_of(folder / task) for task in tasks}


@pytest.fixture(scope="module")
def minilm_graphs(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, model = tmp_path_factory.mktemp("minilm"), TrainedModel.load(minilm_path)
    return {each: model.export("onnx", to=folder / each, precision=each) for each in ("fp32", "int8", "int4")}


@pytest.mark.parametrize(
    ("precision", "apart", "cosine"), [("fp32", 1e-5, 0.99999), ("int8", 1, 0.97), ("int4", 1, 0.9)]
)
def test_minilm_on_onnx_runtime_embeds_as_in_torch(minilm_path, minilm_graphs, precision, apart, cosine):
    wanted = vectors(SentenceTransformersEmbedder(str(minilm_path), device="cpu"))
    on_graph = SentenceTransformersEmbedder(minilm_graphs[precision])
    assert (on_graph.dims, on_graph.model_max_length) == (384, 256)
    for batch_size in (1, 3, 32):
        found = vectors(on_graph, batch_size=batch_size)
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() < apart
        assert (found * wanted).sum(1).min() > cosine
        assert (found * wanted).sum(1).mean() > (0.98 if precision == "int8" else cosine)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "modules",
    [
        [Pooling(32, pooling_mode="mean")],
        [Pooling(32, pooling_mode="max"), Normalize()],
        [Pooling(32, pooling_mode=("cls", "lasttoken", "weightedmean"))],
        [Pooling(32, include_prompt=False), Dense(32, 24), Normalize()],
    ],
    ids=["mean", "max", "several", "dense"],
)
def test_the_modules_of_an_embedder_are_its_own(encoder, tmp_path, modules):
    folder = saved(encoder, tmp_path / "model", *modules, prompts={"query": "cat: "}, default_prompt_name="query")
    in_torch, on_graph = (
        SentenceTransformersEmbedder(each, **({"device": "cpu"} if each == folder else {}))
        for each in (folder, graph_of(folder))
    )
    assert (on_graph.dims, on_graph.model_max_length) == (in_torch.dims, 48)
    for options in ({}, {"batch_size": 1}, {"batch_size": 3, "instruction": "fox "}, {"normalize_embeddings": True}):
        found, wanted = (vectors(each, **options) for each in (on_graph, in_torch))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert not np.allclose(wanted[0], wanted[3], atol=1e-3)
    bare = SentenceTransformersEmbedder(on_graph.model_name, prompts={"query": ""})
    assert not np.allclose(vectors(bare)[0], vectors(on_graph)[0], atol=1e-4)


def test_a_plain_encoder_is_averaged(encoder):
    in_torch, on_graph = (SentenceTransformersEmbedder(each) for each in (encoder, graph_of(encoder)))
    np.testing.assert_allclose(vectors(on_graph), vectors(in_torch), atol=1e-5)
    assert on_graph.dims == 32


@pytest.mark.parametrize(("family", "kind"), [("roberta", "Roberta"), ("mpnet", "MPNet"), ("distilbert", "DistilBert")])
def test_other_encoders_on_either_side_of_padding(family, kind, tmp_path):
    tokenizer, config = tiny_models.word_pieces(TEXTS), tiny_models.build(family).config
    config.vocab_size, config.pad_token_id, config.max_position_embeddings = len(tokenizer), tokenizer.pad_token_id, 80
    torch.manual_seed(0)
    tiny_models.save(getattr(transformers, f"{kind}Model")(config), tokenizer, tmp_path / "encoder")
    folder = saved(tmp_path / "encoder", tmp_path / "model", Pooling(32))
    graph = graph_of(folder)
    for side in ("left", "right"):
        made = [SentenceTransformersEmbedder(each, processor_kwargs={"padding_side": side}) for each in (folder, graph)]
        assert [each.tokenizer.padding_side for each in made] == [side, side]
        for batch_size in (1, 8):
            wanted, found = (vectors(each, batch_size=batch_size) for each in made)
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_options_that_decide_vectors_are_those_of_any_embedder(embedder, graph):
    in_torch, on_graph = (SentenceTransformersEmbedder(each, truncate_dim=7) for each in (embedder, graph))
    np.testing.assert_allclose(vectors(on_graph), vectors(in_torch), atol=1e-5)
    assert on_graph.dims == 7
    short = {"processor_kwargs": {"model_max_length": 12}}
    in_torch, on_graph = (SentenceTransformersEmbedder(each, **short) for each in (embedder, graph))
    np.testing.assert_allclose(vectors(on_graph), vectors(in_torch), atol=1e-5)
    assert on_graph.model_max_length == 12


def test_modules_in_sixteen_bits_are_computed_in_fp32(encoder, tmp_path):
    folder = saved(encoder, tmp_path / "model", Pooling(32), Dense(32, 24), dtype=torch.bfloat16)
    in_torch, on_graph = SentenceTransformersEmbedder(folder, dtype="float32"), graph_of(folder)
    np.testing.assert_allclose(vectors(SentenceTransformersEmbedder(on_graph)), vectors(in_torch), atol=1e-5)


def test_the_graph_of_a_folder_with_weights_runs_if_the_model_says_so(embedder, graph, int8, tmp_path):
    both = Path(shutil.copytree(embedder, tmp_path / "both"))
    shutil.copy(int8 / "model.onnx", both)
    wanted = vectors(SentenceTransformersEmbedder(embedder, device="cpu"))
    np.testing.assert_array_equal(vectors(SentenceTransformersEmbedder(both, device="cpu")), wanted)
    named = TrainedModel.load(both, runtime="onnx")
    assert 1e-4 < np.abs(vectors(SentenceTransformersEmbedder(named)) - wanted).max() < 0.3
    np.testing.assert_allclose(
        vectors(SentenceTransformersEmbedder(TrainedModel.load(graph, runtime="onnx"))), wanted, atol=1e-5
    )


def test_it_is_pickled_unloaded_and_shared_like_any_embedder(graph):
    one = SentenceTransformersEmbedder(graph)
    wanted = vectors(one)
    data = pickle.dumps(one)
    assert len(data) < 20_000
    again = pickle.loads(data)
    np.testing.assert_array_equal(vectors(again), wanted)
    again.unload_model()
    np.testing.assert_array_equal(vectors(again), wanted)
    pair = ParallelEmbedder(one, SentenceTransformersEmbedder(graph))
    np.testing.assert_allclose(vectors(pair, batch_size=4), wanted, atol=1e-6)
    assert fingerprint(pair) == fingerprint(one)


def test_a_fresh_process_embeds_and_writes_nothing_to_the_terminal(graph, tmp_path):
    script = (
        "import sys, json, numpy\n"
        "from datadreamer_like.models import SentenceTransformersEmbedder\n"
        "found = SentenceTransformersEmbedder(sys.argv[1]).run(json.loads(sys.argv[2]), truncate=True)\n"
        "numpy.save(sys.argv[3], numpy.stack(found))\n"
    )
    command = [sys.executable, "-c", script, str(graph), json.dumps(TEXTS), str(tmp_path / "found.npy")]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, vectors(SentenceTransformersEmbedder(graph)), atol=1e-6)


def test_a_session_finds_the_vectors_of_a_graph_again_and_not_those_of_torch(embedder, graph, int8, tmp_path):
    made: dict[Path, list[Any]] = {}
    for again in (False, True):
        for folder in (embedder, graph, int8):
            with DataDreamer(tmp_path / "session", verbose=False):
                rows = DataSource("Texts", {"text": TEXTS})
                model = SentenceTransformersEmbedder(folder, device="cpu")
                step = Embed("Embed", {"texts": rows.output["text"]}, {"embedder": model, "truncate": True})
                found = np.stack(list(step.output["embeddings"]))
            if again:
                assert "model" not in vars(model)
                np.testing.assert_array_equal(found, made[folder])
            made[folder] = found
    np.testing.assert_allclose(made[graph], made[embedder], atol=1e-5)
    assert np.abs(made[int8] - made[embedder]).max() > 1e-4
    prints = {fingerprint(SentenceTransformersEmbedder(each, device="cpu")) for each in (embedder, graph, int8)}
    assert len(prints) == 3


def test_a_retriever_of_a_graph_finds_what_one_in_torch_does(minilm_path, minilm_graphs, tmp_path):
    corpus = ["The cat slept on the rug.", "Reads and writes tables of numbers.", "A parser for command lines."]
    queries = ["a sleeping animal", "spreadsheet files", "options of a program"]
    for folder in (minilm_path, minilm_graphs["int8"]):
        with DataDreamer(tmp_path / folder.name, verbose=False):
            model = SentenceTransformersEmbedder(folder)
            found = EmbeddingRetriever(corpus, model).run(queries, k=1)
        assert [each["texts"] for each in found] == [[text] for text in corpus]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "device has no effect"),
        ({"device": 0}, "device has no effect|has 0 CUDA devices"),
        ({"dtype": "bfloat16"}, "dtype has no effect"),
        ({"dtype": torch.float32}, "dtype has no effect"),
        ({"model_kwargs": {"quantization_config": {}}}, "model_kwargs has no effect"),
        (
            {"model_kwargs": {"attn_implementation": "sdpa"}, "dtype": "float16"},
            "dtype, model_kwargs has no .* them out",
        ),
        ({"config_kwargs": {"hidden_act": "relu"}}, "config_kwargs has no effect"),
        ({"backend": "onnx"}, "backend has no effect"),
        ({"adapter_name": "a"}, 'has no option "adapter_name"'),
        ({"quantization_config": {}}, 'has no option "quantization_config"'),
    ],
)
def test_options_without_effect_on_a_graph_are_refused_before_anything_is_loaded(graph, options, words):
    with pytest.raises(DefinitionError, match=words):
        SentenceTransformersEmbedder(graph, **options)


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification", "MaskedLM"])
def test_a_graph_with_a_head_is_refused_before_anything_is_loaded(with_heads, task):
    with pytest.raises(MethodMisfit, match="gives logits, not the vectors of tokens.*exported from"):
        SentenceTransformersEmbedder(with_heads[task])


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification", "MaskedLM"])
def test_a_graph_of_other_outputs_is_refused_though_its_config_is_that_of_an_encoder(graph, with_heads, task, tmp_path):
    wrong = Path(shutil.copytree(graph, tmp_path / "wrong"))
    shutil.copy(with_heads[task] / "model.onnx", wrong)
    with pytest.raises(StorageError, match=r"model\.onnx was c"):
        SentenceTransformersEmbedder(wrong).run(["a"])
    for name in ("export.json", "card.json"):
        (wrong / name).unlink()
    with pytest.raises(MethodMisfit, match=r"gives outputs of shape.*needs \[batch, tokens, 32\]"):
        SentenceTransformersEmbedder(wrong).run(["a"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}, "other outputs"),
        ({"modality_config": {"text": {"method": "get_text_features", "method_output_name": None}}}, "other outputs"),
    ],
)
def test_modules_that_need_more_than_the_vectors_of_tokens_are_refused(graph, tmp_path, change, words):
    folder = Path(shutil.copytree(graph, tmp_path / "graph"))
    for name in ("export.json", "card.json"):
        (folder / name).unlink()
    config = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(MethodMisfit, match=words):
        SentenceTransformersEmbedder(folder).run(["a"])


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "1_Pooling/config.json", "2_Dense/model.safetensors"])
@pytest.mark.parametrize("how", ["cut", "changed", "missing"])
def test_a_damaged_or_changed_folder_is_refused(graph, tmp_path, name, how):
    folder = Path(shutil.copytree(graph, tmp_path / "graph"))
    content = bytearray((folder / name).read_bytes())
    (folder / name).unlink()
    if how != "missing":
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content if how == "changed" else content[:-9])
    embedder = SentenceTransformersEmbedder(folder) if name != "model.onnx" or how != "missing" else None
    with pytest.raises(StorageError, match=name.replace(".", r"\.")):
        (embedder or SentenceTransformersEmbedder(folder, device="cpu")).run(["a"])


def test_a_graph_cut_off_in_a_folder_without_a_report_is_refused(graph, tmp_path):
    folder = Path(shutil.copytree(graph, tmp_path / "graph"))
    for name in ("export.json", "card.json"):
        (folder / name).unlink()
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-500])
    with pytest.raises(StorageError, match=r"ONNX Runtime cannot load .*model\.onnx.*Export the model again"):
        SentenceTransformersEmbedder(folder).run(["a"])


def test_without_onnxruntime_the_extra_is_named_before_work(graph, monkeypatch):
    found = importlib.util.find_spec
    without = lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", without)
    with pytest.raises(MissingExtra, match=r'ONNX Runtime needs onnxruntime.*datadreamer-like\[export\]"'):
        SentenceTransformersEmbedder(graph)


def test_predict_of_an_embedders_graph_names_what_embeds(graph):
    with pytest.raises(MethodMisfit, match=r"is not a classifier.*SentenceTransformersEmbedder\('.*'\) embeds"):
        TrainedModel.load(graph, runtime="onnx").predict(["a"])


def test_the_threads_are_those_of_torch(graph):
    model = SentenceTransformersEmbedder(graph)
    model.run(["a"])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model.run([f"a {threads}"])
            assert model.model[0].model.session().get_session_options().intra_op_num_threads == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "BertModel"])
def test_an_embedder_whose_config_names_the_head_that_it_was_trained_with_is_one(
    architecture: str, embedder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    trained = TrainedModel.load(folder)
    assert trained.task == "feature-extraction"
    assert type(trained.model) is transformers.BertModel
    wanted = vectors(SentenceTransformersEmbedder(embedder))
    np.testing.assert_allclose(vectors(SentenceTransformersEmbedder(graph_of(folder))), wanted, atol=1e-5)
    with DataDreamer(tmp_path / "out", verbose=False):
        small = Quantize("Codes", folder, NF4())
        found = vectors(SentenceTransformersEmbedder(small.path))
    assert not np.array_equal(found, wanted)
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_a_masked_language_model_without_modules_keeps_its_head(tmp_path: Path) -> None:
    tokenizer = tiny_models.word_pieces(TEXTS)
    folder = tiny_models.save(tiny_models.bert(tokenizer, transformers.BertForMaskedLM), tokenizer, tmp_path / "model")
    trained = TrainedModel.load(folder)
    assert (trained.task, type(trained.model)) == ("fill-mask", transformers.BertForMaskedLM)
