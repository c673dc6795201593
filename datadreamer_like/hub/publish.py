"""Publishing to the Hugging Face Hub: one commit with a card, or none where nothing changed."""

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
    """Publishes a dataset with its card, so that `datasets.load_dataset(repo_id)` gives it back.

    All that is wrong with the names, the token or the card is found before anything is written or sent. The shards
    are written and sent one after another, so that neither memory nor disk holds more than one. All changes are one
    commit; where the repository holds this very dataset already, there is none.

    Args:
        data: The rows; a `Dataset` becomes the split `train`.
        repo_id: `namespace/name`; a bare name is put under the user's own namespace.
        card: Origin of the rows.
        branch: Branch to publish to, made if it is missing; None is the main one.
        private: Whether only its owners may see the repository. One that exists keeps its visibility, and to publish
            privately to a public one is refused.
        token: Access token; None takes the one of `HF_TOKEN` or of `hf auth login`.
        is_synthetic: Whether a language model wrote the rows or a part of them: tagged, and said on the card. None
            finds out from the card.
        config_name: Configuration of the dataset; other configurations in the repository stay.
        task_categories: The Hub's names of tasks that the dataset is made for, such as `text-classification`.
        language: ISO 639 codes of the languages in it.
        max_shard_size: Size that shards aim at, in bytes of Arrow data, or as in `"500MB"`.
        commit_message: Message of the commit.

    Returns:
        URL of the dataset, with the branch.

    Raises:
        HubError: The Hub refuses or cannot be reached, or a name is one that it does not take.
        EmptyDataset: A split has no rows.
        StorageError: The disk has no room for a shard.

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
    with _room_on_disk(), tempfile.TemporaryDirectory(prefix="datadreamer-like-") as folder:
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
    """Publishes a saved model with its card, so that `from_pretrained(repo_id)` gives it back.

    All that is wrong with the names, the token, the folder or the card is found before anything is sent. All changes
    are one commit, in which weights of an earlier publication that have no successor are deleted; where the
    repository holds this very model already, there is none. Checkpoints, optimizer states, and other files of the
    training run stay here, and so does every path of this machine.

    Args:
        folder: Folder that the model was saved to.
        repo_id: `namespace/name`; a bare name is put under the user's own namespace.
        card: Origin of the model.
        branch: Branch to publish to, made if it is missing; None is the main one.
        private: Whether only its owners may see the repository. One that exists keeps its visibility, and to publish
            privately to a public one is refused.
        token: Access token; None takes the one of `HF_TOKEN` or of `hf auth login`.
        is_synthetic: Whether it was trained on rows that a language model wrote: tagged, and said on the card. None
            finds out from the card.
        task: The Hub's name of the task, such as `text-generation`.
        imports: Modules to import before loading, such as `datadreamer_like.quantization`.
        language: ISO 639 codes of the languages that it knows.
        ignore: Patterns, such as `onnx/*`, of further paths to leave out.
        commit_message: Message of the commit.

    Returns:
        URL of the model, with the branch.

    Raises:
        HubError: The Hub refuses or cannot be reached, a name is one that it does not take, or the folder holds
            nothing that others could load.

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
def _room_on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f'The disk is full: no room in "{tempfile.gettempdir()}" for a shard of the dataset. '
            "Free some space, set TMPDIR to another disk, or give a smaller max_shard_size."
        ) from error
