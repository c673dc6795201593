"""What a session makes is published, and is the same where somebody else loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import HubServer
from user_scripts import Script

PUBLISHES = """
    import json, sys
    from datadreamer_like import DataDreamer, pruning, quantization
    from datadreamer_like.stages import Prune, Quantize
    from datadreamer_like.steps import CSVDataSource
    from datadreamer_like.trainers import TrainHFClassifier

    folder, base, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    with DataDreamer(folder):
        data = CSVDataSource("Descriptions", data_files="rows.csv")
        parts = data.splits(train_size=0.75, validation_size=0.25)
        columns = {
            f"{split}_{kind}": parts[split].output[column]
            for split in ("train", "validation")
            for kind, column in (("input", "text"), ("output", "label"))
        }
        student = TrainHFClassifier("Student", model_name=base, device="cpu")
        student.train(**columns, epochs=1, batch_size=10, learning_rate=1e-3)
        slim = Prune("Slim", model=student, method=pruning.Heads(sparsity=0.5), calibration=columns["train_input"])
        small = Quantize("Small", model=slim, method=quantization.DynamicInt8())
        for _ in range(2):
            data.publish_to_hf_hub("me/descriptions", train_size=0.75, validation_size=0.25)
            student.publish_to_hf_hub("me/student")
            small.publish_to_hf_hub("me/small")
        print(json.dumps([model.predict(texts).probabilities.tolist() for model in (student, small)]))
"""

LOADS = """
    import json, sys
    import datadreamer_like.quantization
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = json.loads(sys.argv[1])
    rows = {split: dataset.to_list() for split, dataset in load_dataset("me/descriptions").items()}
    found = []
    for name in ("me/student", "me/small"):
        model = AutoModelForSequenceClassification.from_pretrained(name).eval()
        batch = AutoTokenizer.from_pretrained(name)(texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            found.append(model(**batch).logits.softmax(-1).tolist())
    print(json.dumps([rows, found]))
"""


@pytest.mark.slow
def test_what_is_published_loads_in_a_fresh_process_and_is_the_same(
    tmp_path: Path, hub_server: HubServer, tiny_classifier_base: Path
) -> None:
    words = ["cat", "dog", "train", "tea", "sun", "bread"]
    rows = [
        {"text": f"The {words[i % 6]} was number {i}", "label": "animal" if i % 6 < 2 else "thing"} for i in range(40)
    ]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    texts = json.dumps([row["text"] for row in rows[:8]])
    folder = tmp_path / "session"

    publishes = Script(PUBLISHES, tmp_path / "publish.py", [str(folder), str(tiny_classifier_base), texts], warm=True)
    done = publishes.run(**hub_server.environment(tmp_path / "home"))
    said = json.loads(done.stdout.splitlines()[-1])
    assert "it/s]" not in done.stderr, "the Hub's own progress bars are shown, although hf_log is off"
    repositories = [("dataset", "me/descriptions"), ("model", "me/student"), ("model", "me/small")]
    for kind, name in repositories:
        assert len(hub_server.commits(kind, name)) == 1, f"{name} was published again although nothing had changed"

    loads = Script(LOADS, tmp_path / "load.py", [texts], warm="plain")
    loaded, found = json.loads(loads.run(**hub_server.environment(tmp_path / "elsewhere")).stdout.splitlines()[-1])
    assert {split: len(part) for split, part in loaded.items()} == {"train": 30, "validation": 10}
    assert sorted(map(str, loaded["train"] + loaded["validation"])) == sorted(map(str, rows))
    for here, there in zip(said, found, strict=True):
        for row_here, row_there in zip(here, there, strict=True):
            assert row_there == pytest.approx(row_here, abs=1e-5)

    for kind, name in repositories:
        content = b"".join(hub_server.files(kind, name).values())
        for local in (tmp_path, folder, tiny_classifier_base, Path.home()):
            assert str(local).encode() not in content, f"{name} shows {local}"
        assert hub_server.token.encode() not in content
        data = hub_server.card_data(kind, name)
        assert "synthetic" not in json.dumps(data), "no language model wrote these rows"
        assert not {"base_model", "datasets"} & set(data), "neither comes from the Hub"
        assert hub_server.readme(kind, name).count("\n") > 10
