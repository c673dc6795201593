"""Publishing to the Hugging Face Hub: one commit with a card, or none if nothing changed."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.utils.py_utils import convert_file_size_to_int
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from datadreamer_like.errors import StorageError

from .card import Readme, readme
from .folder import ADAPTER, is_weights, library_of, model_files
from .layout import Layout
from .metadata import base_model, dataset_metadata, model_metadata
from .repository import MAIN, README, Operation, Repository, is_same
from .shards import write_shards

if TYPE_CHECKING:
    import datasets

    from datadreamer_like.graph.card import Card


def publish_dataset(
    data: datasets.Dataset | datasets.DatasetDict,
    repo_id: str,
    *,
    card: Card,
    branch: str | None = None,
    private: bool = False,
    token: str | None = None,
    is_synthetic: bool | None = None,
    config_name: str | None = None,
    task_categories: Sequence[str] = (),
    language: Sequence[str] = (),
    max_shard_size: int | str = "500MB",
    commit_message: str | None = None,
) -> str:
    """Publishes a dataset with its card, for `datasets.load_dataset(repo_id)`.

    Names, token and card are checked before anything is written or sent. Shards are written and sent one after another,
    so that memory and disk hold at most one. All changes are one commit; an unchanged dataset makes none.

    Args:
        data: The rows; a `Dataset` becomes the split `train`.
        repo_id: `namespace/name`; a bare name is in the user's namespace.
        card: Origin of the rows.
        branch: Branch to publish to, created if missing; None for the main branch.
        private: Create a private repository. An existing one keeps its visibility, and publishing privately to a public
            one raises an error.
        token: Access token; None for that of `HF_TOKEN` or `hf auth login`.
        is_synthetic: Whether a language model wrote some of the rows, for a tag and the card; None decides by the card.
        config_name: Configuration of the dataset; other configurations in the repository are kept.
        task_categories: The Hub's names of the dataset's tasks, such as `text-classification`.
        language: ISO 639 codes of its languages.
        max_shard_size: Target size of shards, in bytes of Arrow data, or as in `"500MB"`.
        commit_message: Message of the commit.

    Returns:
        URL of the dataset, with the branch.

    Raises:
        HubError: The Hub rejects a request or is unavailable, or a name is invalid.
        EmptyDataset: A split has no rows.
        StorageError: The disk has no space for a shard.

    Example:
        >>> publish_dataset(rows, "me/topics", card=step.card)  # doctest: +SKIP
        'https://huggingface.co/datasets/me/topics'
    """
    layout = Layout.of(data, config_name)
    repository = Repository(repo_id, "dataset", token=token, branch=branch, private=private)
    metadata = dataset_metadata(
        card,
        rows=layout.rows,
        task_categories=task_categories,
        language=language,
        is_synthetic=card.is_synthetic() if is_synthetic is None else is_synthetic,
        on_hub=repository.exists,
    )

    def written() -> Readme:
        return readme(
            "dataset",
            card,
            metadata | layout.metadata(),
            load=_load_dataset(repository, layout),
            content=layout.description(),
        )

    repository.validate(written().over(None))
    repository.open()
    present = repository.files()
    operations: list[Operation] = []
    with _disk_full_explained(), tempfile.TemporaryDirectory(prefix="datadreamer-like-") as folder:
        for shard in write_shards(layout, Path(folder), int(convert_file_size_to_int(max_shard_size))):
            addition = CommitOperationAdd(shard.path_in_repo, shard.file)
            if is_same(addition, present.get(shard.path_in_repo)):
                shard.file.unlink()
                continue
            operations.append(addition)
            if repository.upload(addition):
                shard.file.unlink()
        operations += _card_change(repository, written())
        operations += _deletions(path for path in present if layout.is_stale(path))
        repository.commit(operations, commit_message or f"Publish {card.name}")
    return repository.url


def publish_model(
    folder: Path,
    repo_id: str,
    *,
    card: Card,
    branch: str | None = None,
    private: bool = False,
    token: str | None = None,
    is_synthetic: bool | None = None,
    task: str = "text-classification",
    imports: Sequence[str] = (),
    language: Sequence[str] = (),
    ignore: Sequence[str] = (),
    commit_message: str | None = None,
) -> str:
    """Publishes a saved model with its card, for `from_pretrained(repo_id)`.

    Names, token, folder and card are checked before anything is sent. All changes are one commit, which also deletes
    weights of an earlier version that no longer exist; an unchanged model makes none. Checkpoints, optimizer states and
    other files of the training run are not published, nor are local paths.

    Args:
        folder: Folder of the saved model.
        repo_id: `namespace/name`; a bare name is in the user's namespace.
        card: Origin of the model.
        branch: Branch to publish to, created if missing; None for the main branch.
        private: Create a private repository. An existing one keeps its visibility, and publishing privately to a public
            one raises an error.
        token: Access token; None for that of `HF_TOKEN` or `hf auth login`.
        is_synthetic: Whether it was trained on rows written by a language model, for a tag and the card; None decides
            by the card.
        task: The Hub's name of the task, such as `text-generation`.
        imports: Modules to import before loading, such as `datadreamer_like.quantization`.
        language: ISO 639 codes of its languages.
        ignore: Further patterns of paths to leave out, such as `onnx/*`.
        commit_message: Message of the commit.

    Returns:
        URL of the model, with the branch.

    Raises:
        HubError: The Hub rejects a request or is unavailable, a name is invalid, or the folder holds no model that
            others could load.

    Example:
        >>> publish_model(student.path, "me/topics-student", card=student.card)  # doctest: +SKIP
        'https://huggingface.co/me/topics-student'
    """
    files = model_files(Path(folder), base_model=base_model(card), ignore=ignore)
    library = library_of(files)
    repository = Repository(repo_id, "model", token=token, branch=branch, private=private)
    metadata = model_metadata(
        card,
        task=task,
        library=library,
        adapter=ADAPTER in files,
        language=language,
        is_synthetic=card.is_synthetic() if is_synthetic is None else is_synthetic,
        on_hub=repository.exists,
    )
    written = readme("model", card, metadata, load=_load_model(repository, library, task, imports))
    repository.validate(written.over(None))
    repository.open()
    present = repository.files()
    additions = (CommitOperationAdd(path, source) for path, source in files.items())
    operations: list[Operation] = [
        addition for addition in additions if not is_same(addition, present.get(addition.path_in_repo))
    ]
    operations += _card_change(repository, written)
    operations += _deletions(path for path in present if is_weights(path) and path not in files)
    repository.commit(operations, commit_message or f"Publish {card.name}")
    return repository.url


def _card_change(repository: Repository, written: Readme) -> list[Operation]:
    before = repository.readme()
    text = written.over(before)
    return [] if text == before else [CommitOperationAdd(README, text.encode())]


def _deletions(paths: Iterable[str]) -> list[Operation]:
    return [CommitOperationDelete(path) for path in sorted(paths)]


def _load_dataset(repository: Repository, layout: Layout) -> str:
    config = [] if layout.is_default else [json.dumps(layout.config)]
    call = _call([json.dumps(repository.repo_id), *config], repository)
    return f"from datasets import load_dataset\n\ndata = load_dataset({call})"


def _load_model(repository: Repository, library: str | None, task: str, imports: Sequence[str]) -> str:
    first = "".join(f"import {module}\n" for module in imports)
    name = json.dumps(repository.repo_id)
    if library == "sentence-transformers":
        call = f"model = SentenceTransformer({_call([name], repository)})"
        return f"{first}from sentence_transformers import SentenceTransformer\n\n{call}"
    if library is None:
        call = f"folder = snapshot_download({_call([name], repository)})"
        return f"{first}from huggingface_hub import snapshot_download\n\n{call}"
    call = f"model = pipeline({_call([json.dumps(task), 'model=' + name], repository)})"
    return f"{first}from transformers import pipeline\n\n{call}"


def _call(arguments: Sequence[str], repository: Repository) -> str:
    revision = [] if repository.branch == MAIN else [f"revision={json.dumps(repository.branch)}"]
    return ", ".join([*arguments, *revision])


@contextmanager
def _disk_full_explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f'The disk is full: no space in "{tempfile.gettempdir()}" for a shard of the dataset. '
            "Free some space, set TMPDIR to another disk, or give a smaller max_shard_size."
        ) from error
