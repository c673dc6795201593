"""Publishing models: the folder comes back with `from_pretrained`, and nothing of this machine goes with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hub_server import HubServer
from warm import printed_by

from datadreamer_like.errors import HubError
from datadreamer_like.graph.card import Card
from datadreamer_like.hub import publish_model

TEACHER = Card("Teacher", "trainer", "TrainHFClassifier", base_model="FacebookAI/roberta-large")
STUDENT = Card(
    "Student",
    "trainer",
    "TrainHFClassifier",
    base_model="google-bert/bert-base-uncased",
    package_version="0.1.0",
    datasets=["stanfordnlp/imdb"],
    metrics={"accuracy": 0.72},
    parents=[TEACHER],
)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT classifier of one layer, with what a training run leaves in it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("student")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"_name_or_path": str(folder)}))
    (folder / "training_args.bin").write_bytes(b"pickled")
    (folder / "README.md").write_text("made by a trainer")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(b"state")
    return folder


def test_a_published_classifier_loads_in_a_fresh_process(hub: HubServer, classifier: Path, tmp_path: Path) -> None:
    url = publish_model(classifier, "me/student", card=STUDENT)
    assert url == f"{hub.url}/me/student"
    script = (
        "import json, torch\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "model = AutoModelForSequenceClassification.from_pretrained('me/student')\n"
        "tokens = AutoTokenizer.from_pretrained('me/student')('good bad', return_tensors='pt')\n"
        "print(json.dumps([tokens['input_ids'].tolist(), model(**tokens).logits.tolist()]))\n"
    )
    ids, logits = json.loads(printed_by(script, environment=hub.environment(tmp_path / "fresh"), plain=True))

    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    assert ids == [[2, 5, 6, 3]]
    torch.testing.assert_close(torch.tensor(logits), model(torch.tensor(ids)).logits)


def test_only_the_model_is_published_in_one_commit_and_only_once(hub: HubServer, classifier: Path) -> None:
    publish_model(classifier, "me/student", card=STUDENT)
    publish_model(classifier, "me/student", card=dataclasses.replace(STUDENT, seconds=5.0))

    assert hub.commits("model", "me/student") == ["Publish Student"]
    assert set(hub.files("model", "me/student")) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_no_file_and_no_card_shows_a_path_of_this_machine(hub: HubServer, classifier: Path) -> None:
    local = Card(
        "Small",
        "stage",
        "Quantize",
        base_model=str(classifier),
        models=[str(classifier), "~/llm.gguf", r"C:\models\llm.gguf"],
        datasets=[
            "./rows.csv",
            str(classifier / "config.json"),
            "https://me:password@example.org/rows.csv?signature=1",
        ],
        facts={"Saved at": str(classifier)},
    )
    publish_model(classifier, "me/small", card=local, ignore=["tokenizer*"])

    content = b"".join(hub.files("model", "me/small").values())
    for hidden in (str(classifier.parent), "~/", "models\\llm", "./rows", "password", "signature"):
        assert hidden.encode() not in content
    assert "base_model" not in hub.card_data("model", "me/small")
    assert "datasets" not in hub.card_data("model", "me/small")
    assert "tokenizer.json" not in hub.files("model", "me/small")


def test_the_card_links_the_base_model_and_data_on_the_hub(hub: HubServer, classifier: Path) -> None:
    publish_model(classifier, "me/student", card=STUDENT, language=["en"], is_synthetic=False)
    assert hub.card_data("model", "me/student") == {
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "google-bert/bert-base-uncased",
        "base_model_relation": "finetune",
        "datasets": ["stanfordnlp/imdb"],
        "tags": ["datadreamer-like"],
    }


@pytest.mark.parametrize(
    ("card", "base", "relation"),
    [
        (
            Card("Q", "stage", "Quantize", base_model="FacebookAI/roberta-large"),
            "FacebookAI/roberta-large",
            "quantized",
        ),
        (Card("Q", "stage", "Quantize", parents=[STUDENT]), STUDENT.base_model, "finetune"),
        (Card("S", "trainer", "TrainHFClassifier", base_model="somewhere/else"), None, None),
        (Card("S", "trainer", "TrainHFClassifier", base_model="output/student"), None, None),
        (Card("S", "trainer", "TrainHFClassifier", parents=[TEACHER]), None, None),
    ],
    ids=[
        "quantized as it was",
        "quantized after training",
        "not on the hub",
        "a folder gone by",
        "a teacher is no base",
    ],
)
def test_the_base_model_is_what_the_model_really_descends_from(
    hub: HubServer, classifier: Path, card: Card, base: str | None, relation: str | None
) -> None:
    publish_model(classifier, "me/small", card=card)
    data = hub.card_data("model", "me/small")
    assert (data.get("base_model"), data.get("base_model_relation")) == (base, relation)


def test_weights_without_a_successor_are_deleted_and_other_files_stay(
    hub: HubServer, classifier: Path, tmp_path: Path
) -> None:
    for name in (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("kept")
    publish_model(tmp_path, "me/student", card=STUDENT)
    publish_model(classifier, "me/student", card=STUDENT)

    files = hub.files("model", "me/student")
    assert [path for path in files if path.startswith("model")] == ["model.safetensors"]
    assert files["notes.txt"] == b"kept"
    assert len(hub.commits("model", "me/student")) == 2


def test_an_adapter_names_its_base_on_the_hub_or_is_refused(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path), "r": 8}))
    with pytest.raises(HubError, match="is a local folder"):
        publish_model(tmp_path, "me/adapter", card=dataclasses.replace(STUDENT, base_model=str(tmp_path)))
    publish_model(tmp_path, "me/adapter", card=STUDENT)

    written = json.loads(hub.files("model", "me/adapter")["adapter_config.json"])
    assert written == {"base_model_name_or_path": "google-bert/bert-base-uncased", "r": 8}
    assert hub.card_data("model", "me/adapter")["base_model_relation"] == "adapter"
    assert hub.card_data("model", "me/adapter")["library_name"] == "peft"


def test_a_folder_without_a_model_is_refused_before_the_hub_is_asked(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="holds no weights"):
        publish_model(tmp_path, "me/student", card=STUDENT)
    with pytest.raises(HubError, match="is not a folder"):
        publish_model(tmp_path / "absent", "me/student", card=STUDENT)
    assert hub.requests == []


def test_a_graph_is_published_and_its_card_loads_it_on_its_runtime(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.onnx").write_bytes(b"graph")
    publish_model(tmp_path, "me/graph", card=STUDENT)
    assert hub.card_data("model", "me/graph")["library_name"] == "onnx"
    assert 'TrainedModel.load(snapshot_download("me/graph"), runtime="onnx")' in hub.readme("model", "me/graph")
    (tmp_path / "modules.json").write_text("[]")
    publish_model(tmp_path, "me/graph", card=STUDENT)
    assert hub.card_data("model", "me/graph")["library_name"] == "onnx"
    assert 'SentenceTransformersEmbedder(snapshot_download("me/graph"))' in hub.readme("model", "me/graph")
    (tmp_path / "model.onnx").rename(tmp_path / "model.safetensors")
    publish_model(tmp_path, "me/graph", card=STUDENT)
    assert hub.card_data("model", "me/graph")["library_name"] == "sentence-transformers"
    assert "model.onnx" not in hub.files("model", "me/graph")


def test_the_card_shows_how_to_load_a_branch_and_what_to_import(hub: HubServer, classifier: Path) -> None:
    url = publish_model(
        classifier, "me/student", card=STUDENT, branch="int8", imports=["datadreamer_like.quantization"]
    )
    assert url == f"{hub.url}/me/student/tree/int8"
    assert (
        "import datadreamer_like.quantization\nfrom transformers import pipeline\n\n"
        'model = pipeline("text-classification", model="me/student", revision="int8")\n'
    ) in hub.readme("model", "me/student", "int8")
