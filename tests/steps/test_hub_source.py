from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datadreamer_like.errors import DataError, HubError
from datadreamer_like.graph import DataDreamer, OutputIterableDataset
from datadreamer_like.steps import HFHubDataSource


@pytest.fixture
def hub(hub_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    hub_server.connect(monkeypatch, tmp_path / "home")
    return hub_server


def upload(hub: Any, text: str, path: str = "train.csv") -> str:
    from hub_server import Blob

    repo = hub.repos.get(("dataset", "me/pets")) or hub.add_repo("dataset", "me/pets")
    return repo.add("main", {**repo.commits[repo.sha("main")], path: Blob(text.encode(), False)}, "upload")


def pets(folder: Path, **options: Any) -> tuple[HFHubDataSource, list[dict[str, Any]]]:
    with DataDreamer(folder, verbose=False):
        source = HFHubDataSource("Pets", "me/pets", **options)
        return source, list(source.output)


def test_rows_come_from_the_commit_and_a_new_upload_is_noticed(hub: Any, tmp_path: Path) -> None:
    first = upload(hub, "pet\ncat\n")
    source, rows = pets(tmp_path / "output")
    assert rows == [{"pet": "cat"}]
    assert source.card.datasets == ["me/pets"]
    assert source.card.facts["Revision"] == first
    assert source.card.dataset_cards == [f"{hub.url}/datasets/me/pets"]
    upload(hub, "pet\ndog\n")
    assert pets(tmp_path / "output", split="train")[1] == [{"pet": "dog"}]
    assert pets(tmp_path / "output", revision=first)[1] == [{"pet": "cat"}]


def test_without_a_connection_the_last_commit_counts(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(hub, "pet\ncat\n")
    source, rows = pets(tmp_path / "output")
    hub.fail(".*", times=1_000, status=503)
    again, same = pets(tmp_path / "output")
    assert (again.fingerprint, same) == (source.fingerprint, rows)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # no server at all
    again, same = pets(tmp_path / "output")
    assert (again.fingerprint, same) == (source.fingerprint, rows)


def test_streaming_keeps_nothing(hub: Any, tmp_path: Path) -> None:
    upload(hub, "pet\ncat\n")
    source, rows = pets(tmp_path / "output", split="train", streaming=True)
    assert isinstance(source.output, OutputIterableDataset)
    assert rows == [{"pet": "cat"}]


def test_several_splits_and_unknown_names(hub: Any, tmp_path: Path) -> None:
    upload(hub, "pet\ncat\n")
    upload(hub, "pet\ndog\n", "test.csv")
    with pytest.raises(DataError, match='has the splits train, test. Choose one: split="train"'):
        pets(tmp_path / "output")
    assert pets(tmp_path / "output", split="test")[1] == [{"pet": "dog"}]
    with DataDreamer(tmp_path / "output", verbose=False), pytest.raises(HubError, match="no dataset me/unknown"):
        HFHubDataSource("Unknown", "me/unknown")


def test_local_files_count_by_their_content(session: DataDreamer, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n")
    source = HFHubDataSource("Local", "csv", data_files=str(path), split="train")
    assert list(source.output) == [{"a": 1}]
    path.write_text("a\n2\n")
    assert HFHubDataSource("Again", "csv", data_files=str(path), split="train").fingerprint != source.fingerprint
