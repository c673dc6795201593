"""A repository on the Hub: write access, files, and one commit of changes."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from datadreamer_like.errors import HubError

from .metadata import is_valid_id
from .request_errors import CONFLICT, TOKEN_HELP, WAITS, explained, is_temporary, pause, retried, status_of

logger = logging.getLogger("datadreamer_like")

README = "README.md"
MAIN = "main"

Operation = CommitOperationAdd | CommitOperationDelete


class Repository:
    """A repository that the holder of a token may write to.

    Construction requests the token's owner from the Hub, and changes nothing there.

    Args:
        repo_id: `namespace/name`; a bare name is in the user's namespace.
        kind: Kind of the repository.
        token: Access token; None for that of HF_TOKEN or `hf auth login`.
        branch: Branch to publish to; None for the main branch.
        private: Whether a new repository is private.

    Raises:
        HubError: The id is invalid, the token is missing, invalid or read-only, the namespace is not the user's, or the
            Hub is unavailable.
    """

    def __init__(
        self, repo_id: str, kind: Literal["dataset", "model"], *, token: str | None, branch: str | None, private: bool
    ) -> None:
        if not is_valid_id(repo_id):
            raise HubError(
                f'"{repo_id}" is not a valid name on the Hub. '
                'Give "namespace/name" of letters, digits, "-", "_" and ".".'
            )
        self.kind = kind
        self.branch = branch or MAIN
        self.private = private
        self.head = ""
        self._token = _usable_token(token, repo_id)
        self._api = HfApi(token=self._token, library_name="datadreamer-like")
        self._known: dict[tuple[str, str], bool] = {}
        with explained(repo_id):
            account = retried(self._api.whoami, first=True)
        self.repo_id = _in_own_namespace(repo_id, account)

    @property
    def url(self) -> str:
        """URL of the published repository."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        tree = "" if self.branch == MAIN else f"/tree/{quote(self.branch, safe='')}"
        return f"{self._api.endpoint}/{prefix}{self.repo_id}{tree}"

    def exists(self, kind: str, repo_id: str) -> bool:
        """Returns whether a repository is on the Hub, to avoid dead links."""
        if (kind, repo_id) not in self._known:
            with explained(repo_id):
                try:
                    retried(lambda: self._api.repo_info(repo_id, repo_type=kind))
                    self._known[kind, repo_id] = True
                except HfHubHTTPError as error:
                    if is_temporary(error):
                        raise
                    self._known[kind, repo_id] = isinstance(error, GatedRepoError)
        return self._known[kind, repo_id]

    def validate(self, readme: str) -> None:
        """Validates a card on the Hub, before anything is created or sent.

        Raises:
            HubError: The card is invalid; the message has the Hub's reasons.
        """
        with explained(self.repo_id):
            try:
                retried(lambda: RepoCard(readme, ignore_metadata_errors=True).validate(repo_type=self.kind))
            except ValueError as error:
                raise HubError(
                    f'The Hub rejects the card of "{self.repo_id}": {error}. '
                    "Fix these values in the node's card or in the arguments of this call."
                ) from error

    def open(self) -> None:
        """Creates the repository and the branch if missing, and reads the branch's last commit.

        Raises:
            HubError: The repository is public although `private` was requested, or the Hub rejects the request.
        """
        with explained(self.repo_id):
            try:
                info = retried(lambda: self._api.repo_info(self.repo_id, repo_type=self.kind))
            except RepositoryNotFoundError:
                retried(
                    lambda: self._api.create_repo(
                        self.repo_id, repo_type=self.kind, private=self.private, exist_ok=True
                    )
                )
            else:
                if self.private and info.private is False:
                    raise HubError(
                        f'"{self.repo_id}" is public, but private=True was given: nothing was sent. '
                        "Make it private in its settings on the Hub, or publish under another name."
                    )
            self.head = self._branch_head()

    def files(self) -> dict[str, RepoFile]:
        """Returns the files of the branch at its last commit, by path."""
        with explained(self.repo_id):
            return retried(self._list)

    def readme(self) -> str | None:
        """Returns the present README.md; None if there is none."""
        with explained(self.repo_id), tempfile.TemporaryDirectory() as folder:
            if README not in self.files():
                return None
            file = retried(
                lambda: self._api.hf_hub_download(
                    self.repo_id, README, repo_type=self.kind, revision=self.head, cache_dir=folder
                )
            )
            return Path(file).read_text(encoding="utf-8-sig")

    def upload(self, addition: CommitOperationAdd) -> bool:
        """Uploads one large file before its commit.

        Returns:
            Whether the local file is no longer needed; small files are sent with the commit.
        """
        with explained(self.repo_id):
            self._api.preupload_lfs_files(
                self.repo_id, [addition], repo_type=self.kind, revision=self.branch, free_memory=True
            )
        return isinstance(addition.path_or_fileobj, bytes)

    def commit(self, operations: Sequence[Operation], message: str) -> bool:
        """Makes one commit of all operations, or none if there are none.

        A commit whose response was lost is detected and not made again.

        Returns:
            Whether there was anything to commit.

        Raises:
            HubError: The Hub rejects the commit or is unavailable, or the branch was changed by someone else meanwhile.
        """
        if not operations:
            logger.info('"%s" is already up to date: nothing to publish', self.url)
            return False
        with explained(self.repo_id):
            for wait in (*WAITS, None):
                try:
                    self._api.create_commit(
                        self.repo_id,
                        list(operations),
                        commit_message=message,
                        repo_type=self.kind,
                        revision=self.branch,
                        parent_commit=self.head or None,
                    )
                    break
                except Exception as error:
                    conflict = status_of(error) in CONFLICT
                    if not (conflict or is_temporary(error)):
                        raise
                    time.sleep(pause(error, wait or WAITS[-1]))
                    if self._holds(operations):
                        break
                    if conflict or wait is None:
                        raise
        logger.info('published to "%s"', self.url)
        return True

    def _branch_head(self) -> str:
        try:
            return self._head()
        except RevisionNotFoundError:
            retried(
                lambda: self._api.create_branch(self.repo_id, branch=self.branch, repo_type=self.kind, exist_ok=True)
            )
            return self._head()

    def _head(self) -> str:
        info = retried(lambda: self._api.repo_info(self.repo_id, repo_type=self.kind, revision=self.branch))
        return info.sha or ""

    def _list(self) -> dict[str, RepoFile]:
        tree = self._api.list_repo_tree(self.repo_id, recursive=True, revision=self.head, repo_type=self.kind)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _holds(self, operations: Sequence[Operation]) -> bool:
        self.head = self._head()
        files = self._list()
        return all(
            is_same(operation, files.get(operation.path_in_repo))
            if isinstance(operation, CommitOperationAdd)
            else operation.path_in_repo not in files
            for operation in operations
        )


def is_same(addition: CommitOperationAdd, present: RepoFile | None) -> bool:
    """Returns whether a file is in the repository with the same content."""
    if present is None or present.size != addition.upload_info.size:
        return False
    if present.lfs is not None:
        return present.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        content = file.read()
    # The Hub identifies small files by their git blob hash.
    return present.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _usable_token(token: str | None, repo_id: str) -> str:
    with explained(repo_id):
        found = (token if token is not None else get_token() or "").strip()
    if not found:
        raise HubError(f'There is no token to publish "{repo_id}". {TOKEN_HELP} as token=.')
    if not (found.isascii() and found.isprintable()) or " " in found:
        # The HTTP library would reject such a header with the token in its message.
        raise HubError(f"The token contains invalid characters. {TOKEN_HELP} as token=.")
    return found


def _in_own_namespace(repo_id: str, account: dict[str, Any]) -> str:
    """Checks write access to the id's namespace, and adds the user's namespace to a bare name."""
    user = str(account["name"])
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            f'The token of "{user}" is read-only. Create one with write permission at '
            "https://huggingface.co/settings/tokens."
        )
    namespace, _, name = repo_id.rpartition("/")
    if not namespace:
        return f"{user}/{name}"
    roles = {org["name"].casefold(): org.get("roleInOrg") for org in account.get("orgs", [])}
    # Accounts other than users, such as those of automation, may write to unlisted namespaces: the Hub decides.
    if namespace.casefold() == user.casefold() or account.get("type", "user") != "user":
        return repo_id
    if namespace.casefold() not in roles:
        own = ", ".join([user, *(org["name"] for org in account.get("orgs", []))])
        raise HubError(
            f'"{namespace}" is not a namespace of the token\'s owner, so nothing can be published to "{repo_id}". '
            f"Publish under one of: {own}."
        )
    if roles[namespace.casefold()] == "read":
        raise HubError(
            f'"{user}" has read-only access to the organization "{namespace}". Ask its owners for write access, '
            f'or publish to "{user}/{name}".'
        )
    return repo_id
