"""Finds a GGUF file: on this machine, or on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datadreamer_like.errors import DefinitionError, HubError, UnknownModel, did_you_mean

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file on this machine.

    Attributes:
        path: Its path.
        repo_id: The Hub repository that it was downloaded from, or None.
    """

    path: Path
    repo_id: str | None = None


def find_gguf(model_name: str, model_file: str | None = None, revision: str | None = None) -> GGUFFile:
    """Finds a model's file, and downloads it from the Hub if necessary.

    Args:
        model_name: Path of a `.gguf` file or of a folder with one, or a Hub repository.
        model_file: The file in that folder or repository, if it has several.
        revision: Branch, tag or commit of the repository.

    Raises:
        UnknownModel: There is no such file, folder or repository.
        DefinitionError: There are several files to choose from.
        HubError: The Hub cannot be reached, and the file is not in its cache.
    """
    path = Path(model_name).expanduser()
    if path.is_file():
        return GGUFFile(path.absolute())
    if path.is_dir():
        files = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*.gguf"))]
        return GGUFFile((path / _chosen(files, model_file, f"The folder {path}")).absolute())
    if model_name.endswith(".gguf") or not _REPO_ID.fullmatch(model_name):
        raise UnknownModel(
            f"There is no model file {model_name}. Give the path of a .gguf file, of a folder that holds one, or a "
            'Hub repository as in "owner/name".'
        )
    return GGUFFile(_from_hub(model_name, model_file, revision), model_name)


def _from_hub(repo_id: str, model_file: str | None, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    what = f"{repo_id} at revision {revision}" if revision else repo_id
    if model_file is None:
        with _hub_errors(f"list of the files of {what}"):
            files = [file for file in HfApi().list_repo_files(repo_id, revision=revision) if file.endswith(".gguf")]
        model_file = _chosen(files, None, f"The Hub repository {repo_id}")
    # A downloaded file is reused, so that a rerun needs no network and gets the same model.
    cached = try_to_load_from_cache(repo_id, model_file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    with _hub_errors(f"file {model_file} of {what}"):
        return Path(hf_hub_download(repo_id, model_file, revision=revision))


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    from huggingface_hub import errors

    absent = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
    try:
        yield
    except Exception as error:  # including errors of the HTTP library, which differs between versions of the Hub client
        if isinstance(error, absent) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise UnknownModel(
                f"The Hub has no {what}. Check the names; a private repository needs a token (`hf auth login`)."
            ) from error
        raise HubError(
            f"Could not get the {what} from the Hub ({type(error).__name__}), and it is not in the local Hub cache. "
            "Connect to the network, or give the path of a file. To use a file downloaded before, pass model_file=."
        ) from error


def _chosen(files: list[str], wanted: str | None, where: str) -> str:
    if wanted is not None:
        if wanted not in files:
            raise UnknownModel(
                f"{where} has no {wanted}; it has: {', '.join(files) or 'no GGUF file'}.{did_you_mean(wanted, files)}"
            )
        return wanted
    if not files:
        raise UnknownModel(f"{where} holds no GGUF file.")
    # llama.cpp loads a model that is split into several files by its first one.
    whole = [file for file in files if not re.search(r"-(?!00001-of)\d{5}-of-\d{5}\.gguf$", file)]
    if len(whole) > 1:
        raise DefinitionError(f"{where} holds several GGUF files. Choose one with model_file=: {', '.join(whole)}.")
    return whole[0]
