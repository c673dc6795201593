"""Exports: each format is read back by another reader than the one that wrote it, and refuses what it cannot hold."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

import gguf
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from warm import printed_by

from datadreamer_like import DataDreamer, pruning, quantization
from datadreamer_like.distillation import HiddenStates
from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    EmptyDataset,
    MethodMisfit,
    MissingExtra,
    StorageError,
)
from datadreamer_like.evaluation import sensitivity
from datadreamer_like.formats.modules import block_linears
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import Exported, HFTransformers, LlamaCPP, SentenceTransformersEmbedder, TrainedModel
from datadreamer_like.models.exports.logits import distance, logits_for_texts
from datadreamer_like.models.exports.write import export_formats
from datadreamer_like.models.llms.gguf import read_gguf_header
from datadreamer_like.models.trained.confidence import Confidence, Threshold
from datadreamer_like.models.trained.embedder_files import copy_modules
from datadreamer_like.stages import Abstain, Calibrate, Compare, FreshWeights, Prune, Quantize, Rewind
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainEmbeddingClassifier, TrainHFClassifier

TEXTS = ["a small cat sat", "dogs run in the park, quickly", "the quick brown fox", "numbers: 3.14 and 12"] * 3
OLDER = "model.safetensors"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    tokenizer = tiny_models.byte_pairs(
        TEXTS, 300, ["<s>", "</s>", "<pad>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=64
    )
    model = tiny_models.llama(tokenizer, num_key_value_heads=2, tie_word_embeddings=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() == 2 else 1).add_(0.02)
    return TrainedModel.save(model, tokenizer, tmp_path_factory.mktemp("lm") / "model")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    tokenizer = tiny_models.word_pieces(TEXTS)
    model = tiny_models.bert(
        tokenizer, num_labels=3, id2label={0: "b", 1: "a", 2: "c"}, label2id={"b": 0, "a": 1, "c": 2}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() == 2 else 1)
    return TrainedModel.save(model, tokenizer, tmp_path_factory.mktemp("classifier") / "model")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder, tokenizer = tmp_path_factory.mktemp("embedder"), tiny_models.word_pieces(TEXTS)
    tiny_models.save(tiny_models.bert(tokenizer, transformers.BertModel), tokenizer, folder / "encoder")
    modules = [Transformer(str(folder / "encoder")), Pooling(32, pooling_mode="cls")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "embedder"))
    return TrainedModel.load(folder / "embedder")


@pytest.fixture(scope="module")
def fitted(classifier: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """The classifier with a temperature and a threshold."""
    folder = Path(shutil.copytree(classifier.path, tmp_path_factory.mktemp("fitted") / "model"))
    Confidence(2.5, Threshold(0.01, 0.1, 0.9, rows=100, answered=60, errors=1)).write(folder)
    return TrainedModel(folder)


@pytest.fixture(scope="module")
def exported(fitted: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str]]]:
    """The classifier as an ONNX graph of each precision, and what was logged meanwhile."""
    folder, found = tmp_path_factory.mktemp("graphs"), {}
    for precision in ("fp32", "int8", "int4"):
        with recorded() as said:
            made = fitted.export("onnx", to=folder / precision, precision=precision, texts=TEXTS)
        found[precision] = made, said
    return found


@pytest.fixture(scope="module")
def graphs(exported: dict[str, tuple[Path, list[str]]]) -> dict[str, Path]:
    """The classifier as an ONNX graph of each precision; the first has its temperature and threshold."""
    return {precision: folder for precision, (folder, _) in exported.items()}


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Collects what the package logs in the block."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("datadreamer_like")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def bits(words: Tensor, count: int) -> np.ndarray[Any, Any]:
    """The 4-bit values of int32 words [rows, words], the lowest bits first: one at a time, by shifting integers."""
    rows = [[int(word) & 0xFFFFFFFF for word in row] for row in words.tolist()]
    return np.array([[word >> (4 * place) & 15 for word in row for place in range(8)][:count] for row in rows])


def with_weights(trained: TrainedModel, weights: dict[str, Tensor]) -> nn.Module:
    """The plain model with some weights replaced."""
    model = getattr(transformers, trained.config.architectures[0]).from_pretrained(trained.path)
    for name, weight in weights.items():
        model.get_submodule(name).weight.data = weight.float()
    return model.eval()


@pytest.mark.parametrize(("kind", "bound"), [("F16", 2e-3), ("Q8_0", 0.05), ("Q4_0", 0.5)])
def test_llama_cpp_and_transformers_read_one_gguf_file_alike(lm, kind, bound, tmp_path):
    folder = lm.export("gguf", to=tmp_path / "gguf", type=kind, texts=TEXTS)
    report = Exported.read(folder)
    assert report.distance < bound
    assert report.loads_in.startswith("llama.cpp")
    read_by_transformers = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf")
    again = logits_for_texts(read_by_transformers, lm.tokenizer, TEXTS)
    wanted = logits_for_texts(lm.model, lm.tokenizer, TEXTS)
    # llama.cpp rounds activations too, and its log-probabilities leave out a constant.
    apart = distance(wanted, again, shifted=True)
    assert 0 < apart < 1.2 * report.distance < 3 * apart + 3e-3
    assert isinstance(TrainedModel.load(folder).model, transformers.LlamaForCausalLM)
    assert len(LlamaCPP(str(folder)).run(["a small"], max_new_tokens=2)) == 1


def test_a_gguf_file_is_not_published_as_a_folder(lm, tmp_path):
    folder = lm.export("gguf", to=tmp_path / "gguf", texts=TEXTS)
    with pytest.raises(MethodMisfit, match=r"model\.gguf is a single file.*hf upload OWNER/NAME"):
        TrainedModel.load(folder).publish_to_hf_hub("me/student")


def test_a_gguf_file_has_no_modules_of_an_embedder(lm, tmp_path):
    copy_modules(str(lm.export("gguf", to=tmp_path / "export", type="F16") / "model.gguf"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_gguf_file_has_the_bits_that_its_type_names(lm, tmp_path):
    sizes = {}
    for kind in ("F16", "Q8_0", "Q4_0"):
        reader = gguf.GGUFReader(lm.export("gguf", to=tmp_path / kind, type=kind) / "model.gguf")
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        sizes[kind] = tensors["blk.0.ffn_up.weight"].n_bytes / tensors["blk.0.ffn_up.weight"].n_elements
        assert "output.weight" not in tensors  # tied
    assert sizes == {"F16": 2.0, "Q8_0": 1.0625, "Q4_0": 0.5625}


@pytest.mark.parametrize("scheme", ["W8A8", "W4A16", "FP8_DYNAMIC"])
@pytest.mark.parametrize("which", ["lm", "classifier"])
def test_compressed_tensors_stores_what_its_specification_says(scheme, which, request, tmp_path):
    trained = request.getfixturevalue(which)
    folder = trained.export("compressed-tensors", to=tmp_path / "ct", scheme=scheme, texts=TEXTS)
    stored, decoded = load_file(folder / OLDER), {}
    for name, layer in block_linears(trained.model).items():
        weight = layer.weight.detach().double()
        scale = stored[f"{name}.weight_scale"].double()
        if scheme == "W4A16":
            assert stored[f"{name}.weight_shape"].tolist() == list(weight.shape)
            codes = torch.tensor(bits(stored[f"{name}.weight_packed"], weight.shape[1])).double() - 8
            size = weight.shape[1] // scale.shape[1]
            largest = weight.abs().unflatten(1, (-1, size)).amax(-1)
            torch.testing.assert_close(scale, largest / 7.5, rtol=2**-11, atol=0)  # in fp16
            scale = scale.repeat_interleave(size, 1)
            # The largest weight of a group is 7.5 scales, halfway between two codes.
            off, limit = (weight / scale - codes).abs(), 0.5 + 7.5 * 2**-11 + 1e-5
            assert off.max() <= limit
            wanted = codes
        else:
            codes = stored[f"{name}.weight"]
            assert codes.dtype == (torch.int8 if scheme == "W8A8" else torch.float8_e4m3fn)
            codes, most = codes.double(), 127 if scheme == "W8A8" else 448
            torch.testing.assert_close(scale, weight.abs().amax(1, keepdim=True) / most, rtol=1e-5, atol=0)
            wanted = (weight / scale).round() if scheme == "W8A8" else (weight / scale).to(torch.float8_e4m3fn).double()
        assert ((codes - wanted).abs() > 0).double().mean() < 1e-3  # ties of float32 and float64
        decoded[name] = codes * scale
    ours = logits_for_texts(with_weights(trained, decoded), trained.tokenizer, TEXTS)
    theirs = logits_for_texts(TrainedModel.load(folder).model, trained.tokenizer, TEXTS)
    # Without activations to round, the two are equal.
    assert distance(ours, theirs) < (1e-5 if scheme == "W4A16" else 0.1)
    assert Exported.read(folder).distance == pytest.approx(
        distance(logits_for_texts(trained.model, trained.tokenizer, TEXTS), theirs), rel=1e-3
    )


def test_the_gptq_layout_stores_what_its_specification_says(lm, tmp_path):
    folder = lm.export("gptq", to=tmp_path / "gptq", group_size=32, texts=TEXTS)
    stored, decoded = load_file(folder / OLDER), {}
    for name, layer in block_linears(lm.model).items():
        outputs, inputs = layer.weight.shape
        codes = bits(stored[f"{name}.qweight"].T, inputs)  # packed along the inputs
        zeros = bits(stored[f"{name}.qzeros"], outputs) + 1
        scales, groups = stored[f"{name}.scales"].double().numpy(), stored[f"{name}.g_idx"].numpy()
        assert groups.tolist() == [index // 32 for index in range(inputs)]
        assert (zeros == 8).all()
        weight = layer.weight.detach().double().numpy()
        decoded[name] = (codes - zeros[groups].T) * scales[groups].T
        assert np.abs(decoded[name] - weight).max() <= 0.5001 * scales.max() * 1.01
        assert codes.dtype.kind == "i"
        assert stored[f"{name}.qweight"].dtype == stored[f"{name}.qzeros"].dtype == torch.int32
    ours = with_weights(lm, {name: torch.tensor(weight) for name, weight in decoded.items()})
    found = distance(logits_for_texts(lm.model, lm.tokenizer, TEXTS), logits_for_texts(ours, lm.tokenizer, TEXTS))
    assert Exported.read(folder).distance == pytest.approx(found, rel=0.05)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["sym"] is True  # the only form that vLLM takes
    assert config["checkpoint_format"] == "gptq"


def test_transformers_runs_the_gptq_layout_packed(lm, tmp_path):
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    pytest.importorskip("optimum", reason="optimum is not installed")
    folder = lm.export("gptq", to=tmp_path / "gptq", texts=TEXTS)
    assert Exported.read(folder).loads_in.startswith("transformers")


@pytest.mark.skipif(find_spec("gptqmodel") is not None and find_spec("optimum") is not None, reason="both are here")
def test_a_folder_for_packages_that_are_not_installed_names_them(lm, tmp_path):
    folder = lm.export("gptq", to=tmp_path / "gptq", texts=TEXTS)
    with pytest.raises(MissingExtra, match=r"cannot load .*gptq here: .*(optimum|gptqmodel)"):
        _ = TrainedModel.load(folder).model


def test_a_classifier_on_onnx_runtime_predicts_as_in_torch(classifier, graphs):
    student = TrainedModel.load(graphs["fp32"], runtime="onnx")
    texts = [*TEXTS, "", "cat " * 200]
    np.testing.assert_allclose(student.logits(texts, batch_size=3), classifier.logits(texts), rtol=1e-4, atol=1e-4)
    assert student.predict(texts).labels == classifier.predict(texts).labels
    assert student.logits(texts[:1]).shape == (1, 3)
    assert student.labels == ["b", "a", "c"]
    assert student.num_parameters == classifier.num_parameters
    assert len(student.predict([])) == 0
    assert fingerprint(student) != fingerprint(classifier)


def test_what_was_fitted_on_a_classifier_ships_with_a_graph_of_the_same_weights(fitted, exported):
    folder, said = exported["fp32"]
    assert "threshold" not in " ".join(said)
    student = TrainedModel.load(folder, runtime="onnx")
    np.testing.assert_allclose(student.predict(TEXTS).probabilities, fitted.predict(TEXTS).probabilities, atol=1e-5)
    assert student.confidence == fitted.confidence
    assert student.predict_or_abstain(TEXTS).labels == fitted.predict_or_abstain(TEXTS).labels
    # In bfloat16 the logits are near those of the graph, but on one side of a threshold or the other.
    assert fitted.confidence.exported(None, torch.bfloat16) == Confidence(temperature=2.5)
    assert fitted.confidence.exported("float32", torch.float32) == Confidence(temperature=2.5)


def test_what_was_fitted_is_left_out_of_exports_with_other_numbers_and_warned_of_once(fitted, exported, tmp_path):
    with recorded() as said:
        compressed = fitted.export("compressed-tensors", to=tmp_path / "export", texts=TEXTS)
    for name, (folder, messages) in (
        ("onnx", exported["int8"]),
        ("onnx", exported["int4"]),
        ("compressed-tensors", (compressed, said)),
    ):
        student = TrainedModel.load(folder, runtime="onnx" if name == "onnx" else "torch")
        assert student.confidence == Confidence()
        (message,) = messages
        load = f"TrainedModel.load({str(folder)!r}" + (', runtime="onnx")' if name == "onnx" else ")")
        for part in (f'"{name}" export', "no temperature and threshold", load):
            assert part in message


def test_a_threshold_and_a_temperature_are_fitted_on_the_graph_that_ships(graphs, tmp_path):
    graph = TrainedModel.load(graphs["int4"], runtime="onnx")  # whose logits do not depend on the batch
    said = graph.predict(TEXTS)
    other = {"a": "b", "b": "c", "c": "a"}
    labels = [other[said.labels[0]], *said.labels[1:]]
    made = []
    for run in range(2):
        with DataDreamer(tmp_path / "session", verbose=False):
            columns = DataSource("Rows", data={"text": TEXTS, "label": labels}).output
            calibrated = Calibrate("Calibrated", graph, columns["text"], columns["label"])
            found = calibrated.predict(TEXTS)
            least = TEXTS[int(found.probabilities.max(1).argmin())]  # the model is wrong in the least certain text
            given = [other[label] if text == least else label for text, label in zip(TEXTS, found.labels, strict=True)]
            held_out = DataSource("Held out", data={"text": TEXTS * 5, "label": given * 5}).output
            sure = Abstain("Sure", calibrated, held_out["text"], held_out["label"], max_error=0.1, confidence=0.8)
            assert (sure.usage.rows == 0) == bool(run)
            made.append(sure.predict_or_abstain(TEXTS))
            temperature = calibrated.temperature
    assert made[0].coverage == 0.75
    assert made[0].labels == made[1].labels
    np.testing.assert_array_equal(sure.trained.logits(TEXTS), graph.logits(TEXTS))
    shipped = [sure.path, str(sure.export(to=tmp_path / "a"))]
    assert sure.export("onnx", to=tmp_path / "b").joinpath("confidence.json").is_file()
    script = (
        "import sys, json; from datadreamer_like.models import TrainedModel\n"
        "for folder in sys.argv[2:]:\n"
        "    model = TrainedModel.load(folder, runtime='onnx')\n"
        "    found = model.predict_or_abstain(json.loads(sys.argv[1]), lambda texts: ['asked'] * len(texts))\n"
        "    print(json.dumps([found.labels, model.confidence.temperature]))"
    )
    wanted = [label or "asked" for label in made[0].labels]
    for line in printed_by(script, json.dumps(TEXTS), *shipped).splitlines():
        assert json.loads(line) == [wanted, temperature]
    with pytest.raises(MethodMisfit, match="exported as it is"):
        sure.export("onnx", to=tmp_path / "c", precision="int4")
    assert "the model that it was made from" in sure.why_not_export("compressed-tensors")
    assert sure.why_not_export("onnx") is None
    with DataDreamer(tmp_path / "other", verbose=False):
        columns = DataSource("Rows", data={"text": TEXTS, "label": labels}).output
        with pytest.raises(DefinitionError, match="runs on the CPU"):
            Calibrate("Calibrated", graph, columns["text"], columns["label"], device="cuda")


def test_the_folder_of_a_graph_is_a_model_where_it_is_run_and_refused_where_weights_are_needed(
    graphs, classifier, tmp_path
):
    folder = graphs["int4"]
    graph = TrainedModel.load(folder, runtime="onnx")
    labels = graph.predict(TEXTS).labels
    teacher = HiddenStates(graph)
    with DataDreamer(tmp_path / "session", verbose=False):
        held_out = DataSource("Held out", data={"text": TEXTS * 5, "label": labels * 5}).output
        columns = held_out["text"], held_out["label"]
        by_path = Abstain("By path", str(folder), *columns, max_error=0.1, confidence=0.8)
        assert by_path.predict_or_abstain(TEXTS).labels == labels
        assert by_path.fingerprint == Abstain("Loaded", graph, *columns, max_error=0.1, confidence=0.8).fingerprint
        both = Compare("Both", [classifier, folder], *columns, repeats=1, resamples=10, teacher=str(folder))
        assert both.rows[1]["accuracy"] == 1
        rows = {"train_input": columns[0], "train_output": columns[1]}
        rows |= {"validation_input": columns[0], "validation_output": columns[1]}
        for given in (str(folder), graph, by_path):
            for call, argument in (
                (partial(Prune, "Pruned", given, pruning.Magnitude(0.5)), "model"),
                (partial(Quantize, "Quantized", given, quantization.NF4()), "model"),
                (partial(FreshWeights, "Fresh", given), "model"),
                (partial(Rewind, "Rewound", classifier, given), "to"),
                (partial(TrainHFClassifier("Trained", given).train, **rows), "model_name"),
                (partial(TrainEmbeddingClassifier("Headed", given).train, **rows), "model_name"),
            ):
                with pytest.raises(MethodMisfit, match=f": {argument}: .*graph of ONNX Runtime.*exported from"):
                    call()
        with pytest.raises(MethodMisfit, match="student: .*graph of ONNX Runtime"):
            sensitivity(folder, TEXTS)
        with pytest.raises(MethodMisfit, match="needs hidden states of its teacher"):
            TrainHFClassifier("Taught", classifier).train(**rows, objective=teacher)
    shutil.copytree(classifier.path, tmp_path / "two")
    shutil.copy(folder / "model.onnx", tmp_path / "two")
    assert TrainedModel.load(tmp_path / "two").predict(TEXTS).labels == classifier.predict(TEXTS).labels
    assert TrainedModel.load(tmp_path / "two", runtime="onnx").predict(TEXTS).labels == labels


def test_a_graph_loads_in_a_fresh_process_and_in_onnx_runtime_alone(classifier, graphs):
    script = (
        "import sys, json; from datadreamer_like.models import TrainedModel\n"
        "print(json.dumps(TrainedModel.load(sys.argv[1], runtime='onnx').logits(json.loads(sys.argv[2])).tolist()))"
    )
    found = json.loads(printed_by(script, str(graphs["fp32"]), json.dumps(TEXTS)))
    np.testing.assert_allclose(found, classifier.logits(TEXTS), rtol=1e-4, atol=1e-4)
    import onnxruntime

    session = onnxruntime.InferenceSession(graphs["fp32"] / "model.onnx", providers=["CPUExecutionProvider"])
    batch = classifier.tokenizer(TEXTS, padding=True, return_tensors="np")
    (logits,) = session.run(None, {each.name: batch[each.name] for each in session.get_inputs()})
    np.testing.assert_allclose(logits, classifier.logits(TEXTS), rtol=1e-4, atol=1e-4)


def test_quantized_graphs_are_smaller_and_near(classifier, graphs):
    import onnx

    kinds = {"int8": "MatMulInteger", "int4": "MatMulNBits"}
    reports = {precision: Exported.read(folder) for precision, folder in graphs.items()}
    for precision, operation in kinds.items():
        graph = onnx.load(graphs[precision] / "model.onnx").graph
        # Every linear layer of both blocks; the head and the pooler are Gemm.
        assert sum(node.op_type == operation for node in graph.node) >= 12
        assert reports[precision].weight_bytes < reports["fp32"].weight_bytes
        assert reports[precision].distance < 0.3
        student = TrainedModel.load(graphs[precision], runtime="onnx")
        assert student.num_parameters == classifier.num_parameters
        assert np.isfinite(student.logits(TEXTS)).all()


def test_every_layer_of_the_blocks_has_4_bits_in_such_a_graph_whatever_its_class(lm, tmp_path):
    import onnx

    config = transformers.GPT2Config(
        vocab_size=lm.config.vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=3, pad_token_id=2
    )
    model = tiny_models.made(transformers.GPT2ForSequenceClassification, config)
    trained = TrainedModel.save(model, lm.tokenizer, tmp_path / "gpt2")
    found = trained.export("onnx", to=tmp_path / "graph", precision="int4", texts=TEXTS)
    kinds = [node.op_type for node in onnx.load(found / "model.onnx").graph.node]
    assert kinds.count("MatMulNBits") >= 8  # four `Conv1D` in each block
    assert "Gemm" not in kinds


def test_a_graph_of_a_model_in_16_bits_is_compared_with_its_weights_and_not_with_its_rounding(classifier, tmp_path):
    halved = quantization.Cast("bfloat16").apply(classifier.model)
    student = TrainedModel.save(halved, classifier.tokenizer, tmp_path / "model")
    folder = student.export("onnx", to=tmp_path / "graph", texts=TEXTS)
    assert Exported.read(folder).distance < 1e-3
    assert TrainedModel.load(folder, runtime="onnx").predict(TEXTS).labels == student.predict(TEXTS).labels


def test_a_graph_runs_without_the_fusion_that_is_slower_than_its_parts(graphs, tmp_path):
    import onnx
    import onnxruntime

    from datadreamer_like.models.exports.onnx_model import SLOWER

    counts = []
    for disabled in ([], SLOWER):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            graphs["int8"] / "model.onnx", options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
        nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
        counts.append(sum(node.op_type == "SkipLayerNormalization" for node in nodes))
    # ONNX Runtime ignores unknown names, so a name that changed would go unnoticed.
    assert counts[0] > counts[1] == 0


def test_a_graph_names_no_file_of_this_machine(graphs):
    content = (graphs["fp32"] / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_exports_do_not_change_the_model_and_are_deterministic(lm, tmp_path):
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    for number, (name, options) in enumerate([("gguf", {"type": "Q4_0"}), ("gptq", {}), ("compressed-tensors", {})]):
        first, second = (lm.export(name, to=tmp_path / f"{number}{each}", **options) for each in "ab")
        reports = [Exported.read(folder).files for folder in (first, second)]
        assert {n: f for n, f in reports[0].items() if n != "card.json"} == {
            n: f for n, f in reports[1].items() if n != "card.json"
        }
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    assert not hasattr(lm.model.config, "quantization_config")


def test_a_quantized_student_is_exported_from_its_parent(classifier, tmp_path):
    with DataDreamer(tmp_path / "session", verbose=False):
        texts = DataSource("Texts", data={"text": TEXTS, "label": ["a", "b", "c"] * 4}).output
        small = Quantize("8 bit", classifier, quantization.DynamicInt8(), calibration=texts["text"])
        sure = Calibrate("Sure", small, texts["text"], texts["label"])
        assert sure.why_not_export("compressed-tensors") is None
        folder = sure.export("compressed-tensors", to=tmp_path / "ct")
    stored = load_file(folder / OLDER)
    name, layer = next(iter(block_linears(classifier.model).items()))
    scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(stored[f"{name}.weight_scale"], scale)
    assert Exported.read(folder).texts == len(TEXTS)  # of the calibration column
    alone = TrainedModel.load(sure.path)
    reason = 'is quantized, and "compressed-tensors" is written from the weights before quantization.*made from "8 bit"'
    with pytest.raises(MethodMisfit, match=reason):
        alone.export("compressed-tensors", to=tmp_path / "other")
    assert "before quantization" in (alone.why_not_export("gguf") or "")
    assert not (tmp_path / "other").exists()


def test_a_sparse_student_is_exported_dense_and_one_without_some_heads_as_a_graph_only(classifier, tmp_path):
    sparse = pruning.Magnitude(sparsity=0.5).apply(classifier.model)
    trained = TrainedModel.save(sparse, classifier.tokenizer, tmp_path / "sparse")
    folder = trained.export("compressed-tensors", to=tmp_path / "ct")
    assert AutoModelForSequenceClassification.from_pretrained(folder) is not None
    batches = [dict(classifier.tokenizer(TEXTS, padding=True, return_tensors="pt"))]
    slim = pruning.Heads(sparsity=0.4).apply(classifier.model, batches)
    narrow = TrainedModel.save(slim, classifier.tokenizer, tmp_path / "narrow")
    with pytest.raises(MethodMisfit, match=r'different widths.*Export it as "onnx"'):
        narrow.export("compressed-tensors", to=tmp_path / "refused")
    graph = TrainedModel.load(narrow.export("onnx", to=tmp_path / "graph"), runtime="onnx")
    np.testing.assert_allclose(graph.logits(TEXTS), narrow.logits(TEXTS), rtol=1e-4, atol=1e-4)


def refusals() -> list[tuple[str, str, dict[str, Any], type[Exception], str]]:
    return [
        ("lm", "gguff", {}, DefinitionError, 'no export format "gguff".*Did you mean "gguf"'),
        ("lm", "gguf", {"typ": "F16"}, DefinitionError, 'has no option "typ". It has: type.*Did you mean "type"'),
        ("lm", "safetensors", {"bits": 4}, DefinitionError, 'no option "bits". It has none'),
        ("lm", "gguf", {"type": "Q9"}, DefinitionError, 'type is "Q9"; choose one of F16'),
        ("lm", "gguf", {"type": "Q4_K_M"}, DefinitionError, "llama-quantize, which is not on the PATH"),
        ("lm", "onnx", {}, MethodMisfit, 'text-generation.*Export it as "gguf"'),
        ("lm", "onnx", {"precision": "int2"}, DefinitionError, "choose one of fp32, int8, int4"),
        ("lm", "compressed-tensors", {"scheme": "W2"}, DefinitionError, "choose one of W8A8"),
        ("lm", "compressed-tensors", {"group_size": 64}, DefinitionError, "group_size is an option of W4A16"),
        ("lm", "gptq", {"group_size": 48}, MethodMisfit, r"64 inputs, which 48 \(group_size\) does not divide.*64"),
        ("lm", "gptq", {"group_size": 0}, DefinitionError, "group_size is 0; it must be at least 1"),
        ("lm", "compressed-tensors", {"scheme": "W4A16", "group_size": -32}, DefinitionError, "group_size is -32"),
        ("lm", "compressed-tensors", {"scheme": "W4A16", "group_size": "32"}, ArgumentTypeError, "a whole number"),
        ("lm", "gptq", {"texts": "one text"}, ArgumentTypeError, "texts is one text, 'one text'"),
        ("lm", "gptq", {"texts": 5}, ArgumentTypeError, "texts must be a list of texts, not 5"),
        ("lm", "gptq", {"texts": {"a": "b"}}, ArgumentTypeError, "texts must be a list of texts"),
        ("lm", "gptq", {"texts": ["a text", 5]}, DataError, "texts has 5, which is not a text"),
        ("lm", "gptq", {"texts": ["", ""]}, EmptyDataset, "empty ones only"),
        ("classifier", "gguf", {}, MethodMisfit, "llama.cpp generates text"),
        ("classifier", "gptq", {}, MethodMisfit, "decoders"),
    ]


@pytest.mark.parametrize(("which", "name", "options", "kind", "message"), refusals())
def test_what_cannot_be_exported_is_refused_before_the_work(which, name, options, kind, message, request, tmp_path):
    if options.get("type") == "Q4_K_M":
        request.getfixturevalue("monkeypatch").setenv("PATH", str(tmp_path))
    trained = request.getfixturevalue(which)
    with pytest.raises(kind, match=message):
        trained.export(name, to=tmp_path / "export", **options)
    assert not (tmp_path / "export").exists()
    if kind is MethodMisfit:
        assert trained.why_not_export(name, **options)


def test_an_embedder_keeps_how_it_pools(embedder, tmp_path):
    folder = embedder.export("compressed-tensors", to=tmp_path / "export")
    for file in ("modules.json", "1_Pooling/config.json"):
        assert (folder / file).read_text() == (Path(embedder.path) / file).read_text()
    with pytest.raises(MethodMisfit, match=r"compressed-tensors, which sentence-transformers does not decode.*vLLM"):
        SentenceTransformersEmbedder(str(folder)).run(["a small cat"])


def test_an_export_does_not_replace_the_model_that_it_is_made_of(classifier, tmp_path):
    shutil.copytree(classifier.path, tmp_path / "outer" / "model")
    own = TrainedModel.load(tmp_path / "outer" / "model")
    own.export(to=tmp_path / "copy")
    own = TrainedModel.load(tmp_path / "copy")  # which later exports may replace
    for name, to in (("safetensors", own.path), ("onnx", tmp_path / "copy"), ("onnx", tmp_path)):
        with pytest.raises(DefinitionError, match="holds the model that is exported"):
            own.export(name, to=to)
    assert own.predict(["a small cat sat"]).labels
    with pytest.raises(ArgumentTypeError, match="to must be the folder"):
        own.export("onnx", to=None)


def test_sizes_that_a_format_cannot_hold_are_named(lm, tmp_path):
    odd = tiny_models.llama(lm.tokenizer, hidden_size=40, intermediate_size=80, num_attention_heads=4)
    trained = TrainedModel.save(odd, lm.tokenizer, tmp_path / "odd")
    with pytest.raises(MethodMisfit, match='have 40 values; Q8_0 codes blocks of 32. Choose type="F16"'):
        trained.export("gguf", to=tmp_path / "export")
    assert trained.why_not_export("gguf", type="F16") is None
    with pytest.raises(MethodMisfit, match="a layer has 40 inputs"):
        trained.export("gptq", to=tmp_path / "export")
    words = tiny_models.word_pieces(TEXTS)
    other = TrainedModel.save(tiny_models.llama(words), words, tmp_path / "words")
    with pytest.raises(MethodMisfit, match="tokenizer is not a byte-level BPE"):
        other.export("gguf", to=tmp_path / "export")
    scaled = tiny_models.llama(lm.tokenizer, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    assert "scaled (linear)" in TrainedModel.save(scaled, lm.tokenizer, tmp_path / "rope").why_not_export("gguf")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_position_embeddings", 10**30, "max_position_embeddings is 1000000000000000000000000000000; it must be"),
        ("max_position_embeddings", 1e30, "max_position_embeddings must be a whole number, not 1e"),
        ("max_position_embeddings", None, "max_position_embeddings must be a whole number, not None"),
        ("max_position_embeddings", 0, "max_position_embeddings is 0"),
        ("max_position_embeddings", -1, "max_position_embeddings is -1"),
        ("max_position_embeddings", 2**32 + 5, "at most 2147483647"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is nan"),
        ("rms_norm_eps", "1e-6", "rms_norm_eps must be a number"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e39}, r"rope_theta is 1e\+39"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": None}, "rope_theta must be a number"),
    ],
)
def test_a_number_that_a_gguf_header_cannot_hold_is_refused_before_the_work(lm, name, value, message, tmp_path):
    model = copy.deepcopy(lm.model)
    vars(model.config)[name] = value  # past the config's own checks, which releases of transformers differ in
    edited = TrainedModel(lm.path)
    edited.model, edited.tokenizer, edited.config = model, lm.tokenizer, model.config
    assert re.search(message, edited.why_not_export("gguf") or "")
    with pytest.raises(MethodMisfit, match=message):
        edited.export("gguf", to=tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_gguf_file_of_a_model_with_windows_is_read_up_to_the_length_of_one(lm, tmp_path):
    sizes = {name: getattr(lm.config, name) for name in ("hidden_size", "intermediate_size", "vocab_size")}
    shape = {**sizes, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    for window, longest in ((24, 24), (None, 64)):
        config = transformers.MistralConfig(**shape, max_position_embeddings=64, sliding_window=window)
        model = transformers.MistralForCausalLM(config)
        trained = TrainedModel.save(model, lm.tokenizer, tmp_path / str(window))
        folder = trained.export("gguf", to=tmp_path / f"gguf-{window}", type="F16", texts=["a small cat sat"])
        assert read_gguf_header(folder / "model.gguf").context_length == longest


def test_weights_that_are_not_numbers_are_found_by_the_check(lm, tmp_path):
    broken = tiny_models.llama(lm.tokenizer)
    broken.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    trained = TrainedModel.save(broken, lm.tokenizer, tmp_path / "broken")
    with pytest.raises(MethodMisfit, match=r"inf apart.*Nothing was written"):
        trained.export("compressed-tensors", to=tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_folder_that_was_changed_after_the_export_is_refused(graphs, lm, tmp_path):
    for number, (name, edit, what) in enumerate(
        [
            ("model.onnx", lambda file: file.write_bytes(file.read_bytes()[:-10]), "was cut off"),
            ("config.json", lambda file: file.write_bytes(file.read_bytes()[:-10]), "was changed"),
            ("tokenizer.json", lambda file: file.unlink(), "is missing"),
        ]
    ):
        folder = shutil.copytree(graphs["fp32"], tmp_path / str(number))
        edit(folder / name)
        with pytest.raises(StorageError, match=rf"{name} {what} (after|since) the export.*delete export.json"):
            TrainedModel.load(folder, runtime="onnx")
    folder = lm.export("gguf", to=tmp_path / "gguf")
    (folder / "model.gguf").write_bytes((folder / "model.gguf").read_bytes()[:-100])
    with pytest.raises(StorageError, match=r"model.gguf was cut off"):
        TrainedModel.load(folder)


def test_the_classes_that_run_an_export_refuse_it_after_a_change_too(lm, tmp_path):
    gguf = lm.export("gguf", to=tmp_path / "gguf", texts=TEXTS)
    coded = lm.export("compressed-tensors", to=tmp_path / "coded", texts=TEXTS)
    for folder, name, run in (
        (gguf, "model.gguf", lambda: LlamaCPP(str(gguf))),
        (coded, "tokenizer.json", lambda: HFTransformers(str(coded)).model),
        (coded, "tokenizer.json", lambda: TrainedModel(coded).model),
    ):
        run()
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(StorageError, match=rf"{name} was changed after"):
            run()
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"],
)
@pytest.mark.parametrize("change", ["changed", "missing"])
def test_a_saved_model_whose_texts_would_be_read_otherwise_is_refused(embedder, name, change, tmp_path):
    folder = embedder.export(to=tmp_path / "copy")
    SentenceTransformersEmbedder(str(folder)).run(["a small cat"])
    file = folder / name
    file.write_text(file.read_text() + " ")  # a change that JSON does not see; its place is as good as any other
    if change == "missing":
        file.unlink()
    for run in (lambda: TrainedModel.load(folder).model, lambda: SentenceTransformersEmbedder(str(folder)).run(["a"])):
        with pytest.raises(
            StorageError, match=rf"{name} (was changed after|is missing since) it was saved.*card\.json"
        ):
            run()
    (folder / "card.json").unlink()
    if change == "changed":  # on purpose
        SentenceTransformersEmbedder(str(folder)).run(["a small cat"])


def test_a_graph_in_a_stages_result_is_compared_with_its_card(graphs, tmp_path):
    folder = Path(shutil.copytree(graphs["fp32"], tmp_path / "result"))
    (folder / "export.json").unlink()
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(StorageError, match=r"model\.onnx was changed after it was saved.*card\.json"):
        TrainedModel.load(folder, runtime="onnx").predict(["a small cat"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, '"id2label" was {"0": "b"'),
        ({"problem_type": "multi_label_classification"}, '"problem_type" was .* at the export, and is "multi'),
        ({"num_hidden_layers": 1}, '"num_hidden_layers" was 2 at the export, and is 1 now'),
        ({"id2label": None}, '"id2label" was .* and is missing now'),
    ],
    ids=str,
)
def test_a_graph_whose_config_means_something_else_is_refused(graphs, changes, says, tmp_path):
    folder = with_config(graphs["int8"], tmp_path / "edited", changes)
    with pytest.raises(StorageError, match=rf"config\.json: {says}.*delete export\.json"):
        TrainedModel.load(folder, runtime="onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"_name_or_path": "elsewhere", "transformers_version": "9"},
        {"use_cache": False, "output_attentions": False},
        {"id2label": {"0": "good", "1": "a", "2": "poor"}, "label2id": {"good": 0, "a": 1, "poor": 2}},
    ],
    ids=str,
)
def test_edits_that_change_no_answer_are_taken_in_a_graph_and_for_other_runtimes(graphs, classifier, changes, tmp_path):
    folder = with_config(graphs["fp32"], tmp_path / "edited", changes)
    after, before = (TrainedModel.load(each, runtime="onnx") for each in (folder, graphs["fp32"]))
    assert (after.logits(TEXTS) == before.logits(TEXTS)).all()
    assert after.labels == list(changes.get("id2label", before.config.id2label).values())
    coded = classifier.export("compressed-tensors", to=tmp_path / "coded", texts=TEXTS)
    assert TrainedModel.load(with_config(coded, tmp_path / "renamed", changes)).labels == after.labels
    # Without the card the values of before are unknown.
    (folder / "card.json").unlink()
    with pytest.raises(StorageError, match=r"config\.json was changed after the export"):
        TrainedModel.load(folder, runtime="onnx")


def with_config(source, folder, changes):
    """A copy of an export with other values in its config; None takes a key out."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if key not in changes or value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def test_no_reason_points_to_a_format_that_refuses_the_model_too(lm, tmp_path):
    """A causal language model is no graph, and pruned heads fit no plain config."""
    batch = dict(lm.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    batch.pop("token_type_ids", None)
    narrow = TrainedModel.save(pruning.Heads(0.5).apply(lm.model, [batch]), lm.tokenizer, tmp_path / "narrow")
    sizes = {"vocab_size": lm.config.vocab_size, "n_embd": 32, "n_layer": 1, "n_head": 4}
    fused = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    for student in (narrow, TrainedModel.save(fused, lm.tokenizer, tmp_path / "fused")):
        for name in ("gguf", "gptq", "compressed-tensors"):
            reason = student.why_not_export(name) or ""
            assert reason
            assert '"onnx"' not in reason
        assert 'as "safetensors"' in (student.why_not_export("onnx") or "")


def test_what_cannot_be_a_graph_is_refused_in_the_packages_own_words(classifier, lm, tmp_path):
    sizes = {name: getattr(lm.config, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=4, num_labels=3)
    alone = transformers.LlamaForSequenceClassification(config)  # without padding it takes one text at a time
    student = TrainedModel.save(alone, lm.tokenizer, tmp_path / "alone")
    assert "it runs no batch of texts" in (student.why_not_export("onnx") or "")
    with pytest.raises(MethodMisfit, match="Set pad_token_id"):
        student.export("onnx", to=tmp_path / "export")

    vocabulary = len(classifier.tokenizer)
    config = transformers.XLNetConfig(vocab_size=vocabulary, d_model=16, n_layer=1, n_head=2, d_inner=16, num_labels=3)
    recurrent = transformers.XLNetForSequenceClassification(config)
    student = TrainedModel.save(recurrent, classifier.tokenizer, tmp_path / "recurrent")
    with pytest.raises(MethodMisfit, match='torch writes no graph of XLNetForSequenceClassification.*"safetensors"'):
        student.export("onnx", to=tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_models_are_opened_on_the_runtime_that_they_are_for(graphs, classifier, lm, tmp_path):
    with pytest.raises(StorageError, match='holds no model for runtime="torch". Pass runtime="onnx"'):
        TrainedModel.load(graphs["int8"])
    with pytest.raises(StorageError, match='holds no model for runtime="onnx".*export'):
        TrainedModel.load(classifier.path, runtime="onnx")
    with pytest.raises(DefinitionError, match='runtime is "tensorrt"; choose one of torch, onnx'):
        TrainedModel.load(graphs["int8"], runtime="tensorrt")
    with pytest.raises(DefinitionError, match="runs on the CPU"):
        TrainedModel.load(graphs["int8"], runtime="onnx", device="cuda")
    with pytest.raises(ArgumentTypeError, match="one text"):
        TrainedModel.load(graphs["int8"], runtime="onnx").predict("a text")
    with pytest.raises(EmptyDataset, match="texts is empty"):
        lm.export("gguf", to=tmp_path / "export", texts=[])
    with pytest.raises(StorageError, match=r"has no export.json"):
        Exported.read(classifier.path)


def test_the_page_on_exports_lists_every_format_with_its_options_and_bytes(lm, classifier, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "exports.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    kinds = export_formats()
    assert [row[0].strip("`") for row in rows] == ["safetensors", *kinds]
    listed = {row[0].strip("`"): row for row in rows}
    for name, kind in kinds.items():
        for field in dataclasses.fields(kind):
            values = [each for each in get_args(get_type_hints(kind)[field.name]) if isinstance(each, str)]
            for wanted in (field.name, *(f'"{value}"' for value in values)):
                assert wanted in listed[name][1], f"{name} lacks {wanted}"

    # Groups of 128, the usual size, divide the layers of this model.
    model = tiny_models.llama(lm.tokenizer, hidden_size=128, intermediate_size=256, num_hidden_layers=1)
    wide = TrainedModel.save(model, lm.tokenizer, tmp_path / "wide")
    weights = sum(layer.weight.numel() for layer in block_linears(model).values())
    found: dict[str, list[float]] = {"compressed-tensors": [], "gptq": [], "gguf": []}
    for name, options in [
        *(("compressed-tensors", {"scheme": scheme}) for scheme in ("W8A8", "W4A16", "FP8_DYNAMIC")), ("gptq", {}),
    ]:  # fmt: skip
        stored = load_file(wide.export(name, to=tmp_path / "export", **options) / OLDER)
        coded = [each for key, each in stored.items() if key.rpartition(".")[0] in block_linears(model)]
        found[name].append(sum(each.nbytes for each in coded if not options or each.dim()) / weights)
    for kind in ("F16", "Q8_0", "Q4_0"):
        reader = gguf.GGUFReader(wide.export("gguf", to=tmp_path / "export", type=kind) / "model.gguf")
        layers = [each for each in reader.tensors if re.search("ffn_(up|down|gate)", each.name)]
        sizes = [(each.n_bytes, each.n_elements) for each in layers]
        found["gguf"].append(sum(size for size, _ in sizes) / sum(count for _, count in sizes))
    for name, values in found.items():
        stated = [float(number) for number in re.findall(r"\d\.\d+", listed[name][4])]
        assert stated == pytest.approx(values, abs=0.04), name


@pytest.mark.parametrize("method", [quantization.GPTQ(4, 16), quantization.QAT(4, 16, learning_rate=1e-3)], ids=str)
def test_codes_that_were_learned_are_exported_as_they_are(lm, method, tmp_path):
    batch = dict(lm.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    batch.pop("token_type_ids", None)
    small = method.apply(lm.model, [batch])
    student = TrainedModel.save(small, lm.tokenizer, tmp_path / "student")
    gptq = load_file(student.export("gptq", to=tmp_path / "gptq", texts=TEXTS) / OLDER)
    ct = load_file(student.export("compressed-tensors", to=tmp_path / "ct", scheme="W4A16", texts=TEXTS) / OLDER)
    for name, layer in block_linears(lm.model).items():
        own, inputs = small.get_submodule(name), layer.weight.shape[1]
        codes = own.signed_codes().numpy().astype(int) + 8
        assert np.array_equal(bits(gptq[f"{name}.qweight"].T, inputs), codes)
        assert np.array_equal(bits(ct[f"{name}.weight_packed"], inputs), codes)
        assert torch.equal(gptq[f"{name}.scales"].T, own.weight_scale)
        assert torch.equal(ct[f"{name}.weight_scale"], own.weight_scale.float())
    for folder in ("gptq", "ct"):
        assert Exported.read(tmp_path / folder).distance < 1e-4  # of the student's own logits
    with torch.no_grad():
        expected = small(**batch).logits
        served = AutoModelForCausalLM.from_pretrained(tmp_path / "ct")(**batch).logits
    torch.testing.assert_close(served, expected, rtol=1e-3, atol=1e-3)
    assert student.why_not_export("gguf") is None
    other = student.export("gptq", to=tmp_path / "other", group_size=32, texts=TEXTS)
    assert Exported.read(other).distance > 1e-3  # rounded again


def test_what_was_trained_in_int8_is_served_in_its_codes_and_signs_nowhere_else(classifier, tmp_path):
    batch = dict(classifier.tokenizer(TEXTS, padding=True, return_tensors="pt"))
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"labels": torch.tensor([0, 1, 2] * 4)}
    small = quantization.QAT(8, learning_rate=1e-3).apply(classifier.model, [batch])
    student = TrainedModel.save(small, classifier.tokenizer, tmp_path / "student")
    stored = load_file(student.export("compressed-tensors", to=tmp_path / "ct", texts=TEXTS) / OLDER)
    for name in block_linears(classifier.model):
        assert torch.equal(stored[f"{name}.weight"], small.get_submodule(name).weight)
    signs = quantization.BinaryNetwork(learning_rate=1e-3).apply(classifier.model, [batch])
    student = TrainedModel.save(signs, classifier.tokenizer, tmp_path / "signs")
    assert "multiplies signs by signs" in (student.why_not_export("onnx") or "")
