"""Publishing to the Hugging Face Hub: one commit with a card, or none if nothing changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.utils.py_utils import convert_file_size_to_int
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from datadreamer_like.errors import SessionError, StorageError
from datadreamer_like.graph.session import current_session
from datadreamer_like.storage.folders import NO_SPACE

from .card import Readme, readme
from .folder import ADAPTER, is_weights, library_of, published_files
from .layout import DEFAULT_CONFIG, Layout
from .loading import arguments, load_model
from .metadata import base_model, card_metadata, dataset_keys, model_keys
from .repository import README, Repository

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
    """Publishes a dataset with its card, for `datasets.load_dataset(repo_id)`, and returns its URL with the branch.

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

    Raises:
        HubError: The token is missing, invalid or read-only, a name is invalid, splits differ in their columns, or the
            Hub rejects a request or is unavailable.
        ArgumentTypeError: The rows are lazy, or not a dataset.
        EmptyDataset: There is no split, or one has no rows.
        StorageError: The disk has no space for a shard.

    Example:
        >>> publish_dataset(rows, "me/topics", card=step.card)  # doctest: +SKIP
        'https://huggingface.co/datasets/me/topics'
    """
    _not_in_preview(repo_id)
    layout = Layout.of(data, config_name)
    repository = Repository(repo_id, "dataset", token=token, branch=branch, private=private)
    keys = dataset_keys(card, sum(map(len, layout.splits.values())), task_categories, repository.exists)
    metadata = card_metadata(card, language, is_synthetic, **keys)

    config = [] if layout.config == DEFAULT_CONFIG else [layout.config]
    given = arguments(repository, repository.repo_id, *config)
    load = f"from datasets import load_dataset\n\ndata = load_dataset({given})"

    def written() -> Readme:
        return readme("dataset", card, metadata | layout.metadata(), load=load, content=layout.description())

    repository.validate(written().over(None))
    repository.open()
    additions: list[CommitOperationAdd] = []
    with _disk_full_explained(), tempfile.TemporaryDirectory(prefix="datadreamer-like-") as folder:
        for path, file in layout.write_shards(Path(folder), int(convert_file_size_to_int(max_shard_size))):
            addition = CommitOperationAdd(path, file)
            is_new = not repository.is_done(addition)
            if is_new:
                additions.append(addition)
            if not is_new or repository.upload(addition):
                file.unlink()
        stale = filter(layout.is_stale, repository.files)
        return _commit(repository, additions, written(), stale, commit_message or f"Publish {card.name}")


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
    options: Mapping[str, object] | None = None,
    commit_message: str | None = None,
) -> str:
    """Publishes a saved model with its card, for `from_pretrained(repo_id)`, and returns its URL with the branch.

    Names, token, folder and card are checked before anything is sent. All changes are one commit, which also deletes
    weights of an earlier version that no longer exist; an unchanged model makes none. Checkpoints, optimizer states and
    other files of the training run are not published, nor are local paths.

    `task` is the Hub's name of the task, such as `text-generation`; `imports` are modules to import before loading,
    such as `datadreamer_like.quantization`; `options` are arguments of `from_pretrained` for the base model of an
    adapter, such as its labels; `ignore` are further patterns of paths to leave out, such as `onnx/*`;
    `is_synthetic` says whether it was trained on rows written by a language model. For the rest see `publish_dataset`.

    Raises:
        HubError: The Hub rejects a request or is unavailable, a name is invalid, or the folder holds no model that
            others could load.

    Example:
        >>> publish_model(student.path, "me/topics-student", card=student.card)  # doctest: +SKIP
        'https://huggingface.co/me/topics-student'
    """
    _not_in_preview(repo_id)
    files = published_files(Path(folder), base_model=base_model(card), ignore=ignore)
    library = library_of(files)
    repository = Repository(repo_id, "model", token=token, branch=branch, private=private)
    keys = model_keys(card, task, library, ADAPTER in files, repository.exists)
    load = load_model(repository, files, task, imports, base_model(card), options or {})
    metadata = card_metadata(card, language, is_synthetic, **keys)
    written = readme("model", card, metadata, load=load)
    repository.validate(written.over(None))
    repository.open()
    operations = (CommitOperationAdd(path, source) for path, source in files.items())
    additions = [addition for addition in operations if not repository.is_done(addition)]
    stale = (path for path in repository.files if is_weights(path) and path not in files)
    return _commit(repository, additions, written, stale, commit_message or f"Publish {card.name}")


def _not_in_preview(repo_id: str) -> None:
    session = current_session()
    if session is not None and session.preview is not None:
        raise SessionError(
            f"Publishing {repo_id}: this is a preview of {session.preview} rows. Run the script without preview=..."
        )


def _commit(
    repository: Repository, additions: list[CommitOperationAdd], written: Readme, stale: Iterable[str], message: str
) -> str:
    """Commits additions, the card if it changed and deletions, and returns the repository's URL."""
    before = repository.readme()
    text = written.over(before)
    card = [] if text == before else [CommitOperationAdd(README, text.encode())]
    deletions = [CommitOperationDelete(path) for path in sorted(stale)]
    repository.commit([*additions, *card, *deletions], message)
    return repository.url


@contextmanager
def _disk_full_explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise StorageError(
            f'The disk is full: no space in "{tempfile.gettempdir()}" for a shard of the dataset. '
            "Free some space, set TMPDIR to another disk, or give a smaller max_shard_size."
        ) from error
