"""Publishing datasets: what is published is what comes back, and what is unchanged is not published again."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from hub_server import HubServer
from warm import printed_by

from datadreamer_like.errors import ArgumentTypeError, EmptyDataset, HubError
from datadreamer_like.graph.card import Card
from datadreamer_like.hub import publish_dataset

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["audio", "web"]),
        "scores": datasets.List(datasets.Value("float32")),
    }
)
CARD = Card(
    name="Keep good",
    kind="step",
    class_name="FilterWithPrompt",
    created="2026-11-23T10:00:00Z",
    seconds=3.0,
    rows=6,
    package_version="0.1.0",
    datasets=["stanfordnlp/imdb"],
    licenses=["mit"],
)


def rows(count: int, first: int = 0) -> datasets.Dataset:
    numbers = range(first, first + count)
    data = {
        "text": [f"text {i} äß\n" for i in numbers],
        "label": [i % 2 for i in numbers],
        "scores": [[float(i)] * (i % 3) if i % 4 else None for i in numbers],
    }
    return datasets.Dataset.from_dict(data, features=FEATURES)


def splits() -> datasets.DatasetDict:
    return datasets.DatasetDict(train=rows(6), validation=rows(2, first=6))


def loaded(hub: HubServer, home: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    """What another process gets from `load_dataset`, with the features under a name of their own."""
    script = (
        "import json, sys, datasets\n"
        "got = datasets.load_dataset(*sys.argv[1:])\n"
        "features = {name: str(rows.features) for name, rows in got.items()}\n"
        "print(json.dumps({name: rows.to_list() for name, rows in got.items()} | {'': features}))\n"
    )
    return json.loads(printed_by(script, *arguments, environment=hub.environment(home)).splitlines()[-1])


def test_published_splits_come_back_with_their_features(hub: HubServer, tmp_path: Path) -> None:
    url = publish_dataset(splits(), "me/topics", card=CARD)

    assert url == f"{hub.url}/datasets/me/topics"
    got = loaded(hub, tmp_path / "fresh", "me/topics")
    assert got.pop("") == {"train": str(FEATURES), "validation": str(FEATURES)}
    assert got == {name: part.to_list() for name, part in splits().items()}


def test_publishing_in_a_process_of_its_own_needs_only_the_environment(hub_server: HubServer, tmp_path: Path) -> None:
    script = (
        "import datasets\n"
        "from datadreamer_like.graph.card import Card\n"
        "from datadreamer_like.hub import publish_dataset\n"
        "rows = datasets.Dataset.from_dict({'text': ['a', 'b']})\n"
        "print(publish_dataset(rows, 'tiny', card=Card('Tiny', 'step', 'DataSource')))\n"
        "import sys; assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    environment = hub_server.environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub_server.url}/datasets/me/tiny"
    assert len(hub_server.commits("dataset", "me/tiny")) == 1


def test_all_files_of_a_publication_are_one_commit(hub: HubServer) -> None:
    publish_dataset(splits(), "me/topics", card=CARD, commit_message="First")

    assert hub.commits("dataset", "me/topics") == ["First"]
    assert set(hub.files("dataset", "me/topics")) == {
        ".gitattributes",
        "README.md",
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    }


def test_publishing_the_same_again_makes_no_commit_whenever_it_was_made(hub: HubServer) -> None:
    publish_dataset(splits(), "me/topics", card=CARD)
    later = dataclasses.replace(CARD, created="2027-01-01T00:00:00Z", seconds=99.0)
    publish_dataset(splits(), "me/topics", card=later)

    assert len(hub.commits("dataset", "me/topics")) == 1
    assert "2026-11-23" in hub.readme("dataset", "me/topics")


def test_the_same_rows_are_known_again_however_they_lie_in_memory(hub: HubServer) -> None:
    publish_dataset(rows(6), "me/topics", card=CARD)
    through_indices = rows(9).select([5, 4, 3, 2, 1, 0]).select([5, 4, 3, 2, 1, 0])
    in_pieces = datasets.concatenate_datasets([rows(2), rows(3, first=2), rows(1, first=5)])
    publish_dataset(through_indices, "me/topics", card=CARD)
    publish_dataset(in_pieces.with_format("numpy", columns=["text"]), "me/topics", card=CARD)

    assert len(hub.commits("dataset", "me/topics")) == 1


def test_one_changed_row_is_one_commit_of_its_shard_alone(hub: HubServer) -> None:
    publish_dataset(splits(), "me/topics", card=CARD)
    sent = len([r for r in hub.requests if r.startswith("PUT")])
    changed = splits()
    changed["validation"] = changed["validation"].map(lambda row: {"text": row["text"].replace("text 7", "other")})
    publish_dataset(changed, "me/topics", card=CARD)

    assert len(hub.commits("dataset", "me/topics")) == 2
    assert len([r for r in hub.requests if r.startswith("PUT")]) == sent + 1


def test_a_changed_card_alone_is_one_commit_of_the_readme(hub: HubServer) -> None:
    publish_dataset(splits(), "me/topics", card=CARD)
    before = hub.files("dataset", "me/topics")
    publish_dataset(splits(), "me/topics", card=dataclasses.replace(CARD, prompts=["Is it good?"]))
    after = hub.files("dataset", "me/topics")

    assert len(hub.commits("dataset", "me/topics")) == 2
    assert {path for path in after if after[path] != before.get(path)} == {"README.md"}


def test_shards_without_a_successor_are_deleted_in_the_same_commit(hub: HubServer, tmp_path: Path) -> None:
    publish_dataset(splits(), "me/topics", card=CARD)
    publish_dataset(rows(3), "me/topics", card=CARD)

    assert len(hub.commits("dataset", "me/topics")) == 2
    assert [path for path in hub.files("dataset", "me/topics") if path.endswith("parquet")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert set(loaded(hub, tmp_path / "fresh", "me/topics")) == {"", "train"}


def test_a_large_dataset_becomes_several_shards_in_one_commit_and_in_order(hub: HubServer, tmp_path: Path) -> None:
    count = 200_000  # 1.6 MB
    data = datasets.Dataset.from_dict({"number": list(range(count))})
    publish_dataset(data, "me/numbers", card=CARD, max_shard_size="600KB")

    shards = sorted(path for path in hub.files("dataset", "me/numbers") if path.endswith("parquet"))
    assert shards == [f"data/train-{index:05d}-of-00004.parquet" for index in range(4)]
    assert len(hub.commits("dataset", "me/numbers")) == 1
    assert [row["number"] for row in loaded(hub, tmp_path / "fresh", "me/numbers")["train"]] == list(range(count))


def test_rows_of_unequal_length_are_cut_alike_however_they_lie_in_memory(hub: HubServer) -> None:
    texts = ["x" * (index % 977) for index in range(3_000)]
    data = datasets.Dataset.from_dict({"text": texts + ["left out" * 1_000] * 500})
    publish_dataset(data.select(range(3_000)), "me/texts", card=CARD, max_shard_size="300KB")
    publish_dataset(
        data.filter(lambda text: text[:1] != "l", input_columns="text"), "me/texts", card=CARD, max_shard_size="300KB"
    )
    publish_dataset(datasets.Dataset.from_dict({"text": texts}), "me/texts", card=CARD, max_shard_size="300KB")

    assert len([path for path in hub.files("dataset", "me/texts") if path.endswith("parquet")]) > 4
    assert len(hub.commits("dataset", "me/texts")) == 1


def test_columns_of_fixed_shape_and_nested_ones_come_back(hub: HubServer, tmp_path: Path) -> None:
    features = datasets.Features({"grid": datasets.Array2D((2, 2), "int32"), "more": {"a": datasets.Value("bool")}})
    data = datasets.Dataset.from_dict({"grid": [[[1, 2], [3, 4]]], "more": [{"a": True}]}, features=features)
    publish_dataset(data, "me/grids", card=CARD)

    assert loaded(hub, tmp_path / "fresh", "me/grids") == {"": {"train": str(features)}, "train": data.to_list()}


def test_configurations_live_beside_each_other(hub: HubServer, tmp_path: Path) -> None:
    publish_dataset(rows(2), "me/topics", card=CARD)
    publish_dataset(datasets.Dataset.from_dict({"other": ["x"]}), "me/topics", card=CARD, config_name="short")
    publish_dataset(rows(3), "me/topics", card=CARD)

    assert [row["text"] for row in loaded(hub, tmp_path / "a", "me/topics")["train"]] == rows(3)["text"][:]
    assert loaded(hub, tmp_path / "b", "me/topics", "short")["train"] == [{"other": "x"}]


def test_a_branch_is_made_when_missing_and_leaves_main_alone(hub: HubServer) -> None:
    publish_dataset(rows(2), "me/topics", card=CARD)
    url = publish_dataset(rows(3), "me/topics", card=CARD, branch="tries/one")
    publish_dataset(rows(3), "me/topics", card=CARD, branch="tries/one")

    assert url == f"{hub.url}/datasets/me/topics/tree/tries%2Fone"
    assert len(hub.commits("dataset", "me/topics")) == 1
    assert len(hub.commits("dataset", "me/topics", "tries/one")) == 1
    assert 'load_dataset("me/topics", revision="tries/one")' in hub.readme("dataset", "me/topics", "tries/one")


def test_private_is_private_and_never_goes_into_a_public_repository(hub: HubServer) -> None:
    publish_dataset(rows(2), "me/secret", card=CARD, private=True)
    assert hub.repos["dataset", "me/secret"].private
    publish_dataset(rows(2), "me/open", card=CARD)
    with pytest.raises(HubError, match="is public, but private=True was given: nothing was sent"):
        publish_dataset(rows(3), "me/open", card=CARD, private=True)
    assert len(hub.commits("dataset", "me/open")) == 1


def test_text_and_keys_that_others_wrote_on_the_card_stay(hub: HubServer) -> None:
    publish_dataset(rows(2), "me/topics", card=CARD)
    repo = hub.repos["dataset", "me/topics"]
    files = dict(repo.commits[repo.sha("main")])
    text = files["README.md"].content.decode()
    edited = (
        text.replace("---\n\n<!--", "gated_reason: mine\n---\n\nHand-written before.\n\n<!--", 1) + "\nAnd after.\n"
    )
    files["README.md"] = dataclasses.replace(files["README.md"], content=edited.encode())
    repo.add("main", files, "edit by hand")

    publish_dataset(rows(2), "me/topics", card=CARD)
    assert hub.readme("dataset", "me/topics") == edited
    publish_dataset(rows(4), "me/topics", card=CARD)
    after = hub.readme("dataset", "me/topics")
    assert hub.card_data("dataset", "me/topics")["gated_reason"] == "mine"
    assert after.index("Hand-written before.") < after.index("# Keep good") < after.index("And after.")
    assert after.count("# Keep good") == 1


def test_an_image_travels_with_its_dataset(hub: HubServer, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"not looked into")
    features = datasets.Features({"image": datasets.Image(decode=False)})
    publish_dataset(datasets.Dataset.from_dict({"image": [str(picture)]}, features=features), "me/pictures", card=CARD)

    files = hub.files("dataset", "me/pictures")
    assert b"not looked into" in files["data/train-00000-of-00001.parquet"]
    assert not any(str(tmp_path).encode() in content for content in files.values())


def test_what_cannot_be_published_is_refused_before_the_hub_is_asked(hub: HubServer) -> None:
    with pytest.raises(EmptyDataset, match='The split "test" has no rows'):
        publish_dataset(datasets.DatasetDict(train=rows(1), test=rows(0)), "me/topics", card=CARD)
    with pytest.raises(HubError, match='"my-split" cannot name a split'):
        publish_dataset(datasets.DatasetDict({"my-split": rows(1)}), "me/topics", card=CARD)
    with pytest.raises(ArgumentTypeError, match="IterableDataset cannot be published"):
        publish_dataset(rows(1).to_iterable_dataset(), "me/topics", card=CARD)
    different = datasets.DatasetDict(train=rows(1), test=datasets.Dataset.from_dict({"other": [1]}))
    with pytest.raises(HubError, match="The splits differ in their columns"):
        publish_dataset(different, "me/topics", card=CARD)
    with pytest.raises(HubError, match='"a/b" cannot name a configuration'):
        publish_dataset(rows(1), "me/topics", card=CARD, config_name="a/b")
    assert hub.requests == []
