"""A repository on the Hub: write access, files, and one commit of changes."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from datadreamer_like.errors import HubError
from datadreamer_like.graph.session import not_in_plan

from .metadata import is_local, is_valid_id
from .request_errors import CONFLICT, TOKEN_HELP, WAITS, explained, is_temporary, pause, retried, status_of

logger = logging.getLogger("datadreamer_like")

README = "README.md"
MAIN = "main"

Operation = CommitOperationAdd | CommitOperationDelete


class Repository:
    """A repository that the holder of a token may write to; `head` and `files` are those of the branch's last commit.

    Construction checks the id, and requests the token's owner from the Hub to check that the namespace is the owner's;
    it changes nothing there. For the arguments and errors, see `publish_dataset`.
    """

    def __init__(
        self, repo_id: str, kind: Literal["dataset", "model"], *, token: str | None, branch: str | None, private: bool
    ) -> None:
        if not is_valid_id(repo_id):
            raise HubError(
                f'"{repo_id}" is not a valid name on the Hub. '
                'Give "namespace/name" of letters, digits, "-", "_" and ".".'
            )
        not_in_plan("the Hub")
        self.kind = kind
        self.branch = branch or MAIN
        self.private = private
        self.head = ""
        self.files: dict[str, RepoFile] = {}
        self._api = HfApi(token=_usable_token(token, repo_id), library_name="datadreamer-like")
        with explained(repo_id):
            account = retried(self._api.whoami, first=True)
        self.repo_id = _in_own_namespace(repo_id, account)
        self._repo: dict[str, Any] = {"repo_id": self.repo_id, "repo_type": kind}

    @property
    def url(self) -> str:
        """URL of the published repository."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        tree = "" if self.branch == MAIN else f"/tree/{quote(self.branch, safe='')}"
        return f"{self._api.endpoint}/{prefix}{self.repo_id}{tree}"

    def exists(self, kind: str, repo_id: str) -> bool:
        """Returns whether a repository is on the Hub, to avoid dead links."""
        if is_local(repo_id) or not is_valid_id(repo_id):
            return False
        with explained(repo_id):
            try:
                return retried(lambda: self._api.repo_exists(repo_id, repo_type=kind))
            except HfHubHTTPError as error:
                if is_temporary(error):
                    raise
                return False

    def validate(self, readme: str) -> None:
        """Validates a card on the Hub, before anything is created or sent; the error has the Hub's reasons."""
        with explained(self.repo_id):
            try:
                retried(lambda: RepoCard(readme, ignore_metadata_errors=True).validate(repo_type=self.kind))
            except ValueError as error:
                raise HubError(
                    f'The Hub rejects the card of "{self.repo_id}": {error}. '
                    "Fix these values in the node's card or in the arguments of this call."
                ) from error

    def open(self) -> None:
        """Creates the repository and the branch if missing, and reads the branch's last commit."""
        with explained(self.repo_id):
            try:
                info = retried(lambda: self._api.repo_info(**self._repo))
            except RepositoryNotFoundError:
                retried(lambda: self._api.create_repo(**self._repo, private=self.private, exist_ok=True))
            else:
                if self.private and info.private is False:
                    raise HubError(
                        f'"{self.repo_id}" is public, but private=True was given: nothing was sent. '
                        "Make it private in its settings on the Hub, or publish under another name."
                    )
            try:
                self._read()
            except RevisionNotFoundError:
                retried(lambda: self._api.create_branch(**self._repo, branch=self.branch, exist_ok=True))
                self._read()

    def is_done(self, operation: Operation) -> bool:
        """Returns whether the branch is as the operation would make it: it has the same file, or none to delete."""
        present = self.files.get(operation.path_in_repo)
        if isinstance(operation, CommitOperationDelete):
            return present is None
        if present is None or present.size != operation.upload_info.size:
            return False
        if present.lfs is not None:
            return present.lfs.sha256 == operation.upload_info.sha256.hex()
        with operation.as_file() as file:
            return present.blob_id == git_hash(file.read())

    def readme(self) -> str | None:
        """Returns the present README.md; None if there is none."""
        if README not in self.files:
            return None
        with explained(self.repo_id), tempfile.TemporaryDirectory() as folder:
            found = {**self._repo, "filename": README, "revision": self.head}
            file = retried(lambda: self._api.hf_hub_download(**found, cache_dir=folder))
            return Path(file).read_text(encoding="utf-8-sig")

    def upload(self, addition: CommitOperationAdd) -> bool:
        """Uploads a large file before its commit, and returns whether it was large; small files go with the commit."""
        with explained(self.repo_id):
            self._api.preupload_lfs_files(**self._repo, additions=[addition], revision=self.branch, free_memory=True)
        return isinstance(addition.path_or_fileobj, bytes)

    def commit(self, operations: Sequence[Operation], message: str) -> None:
        """Makes one commit of all operations, if any; one whose response was lost is detected and not made again."""
        if not operations:
            logger.info('"%s" is already up to date: nothing to publish', self.url)
            return
        with explained(self.repo_id):
            for wait in (*WAITS, None):
                try:
                    self._api.create_commit(
                        **self._repo,
                        operations=list(operations),
                        commit_message=message,
                        revision=self.branch,
                        parent_commit=self.head or None,
                    )
                    break
                except Exception as error:
                    conflict = status_of(error) in CONFLICT
                    if not (conflict or is_temporary(error)):
                        raise
                    time.sleep(pause(error, wait or WAITS[-1]))
                    self._read()
                    if all(map(self.is_done, operations)):
                        break
                    if conflict or wait is None:
                        raise
        logger.info('published to "%s"', self.url)

    def _read(self) -> None:
        """Reads the branch's last commit and its files."""
        self.head = retried(lambda: self._api.repo_info(**self._repo, revision=self.branch)).sha or ""
        tree = retried(lambda: list(self._api.list_repo_tree(**self._repo, recursive=True, revision=self.head)))
        self.files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


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
    roles = {user: "write"} | {org["name"]: org.get("roleInOrg") for org in account.get("orgs", [])}
    folded = {known.casefold(): role for known, role in roles.items()}
    if account.get("type", "user") != "user":
        return repo_id  # other accounts, such as those of automation, may write to unlisted namespaces: the Hub decides
    if namespace.casefold() not in folded:
        raise HubError(
            f'"{namespace}" is not a namespace of the token\'s owner, so nothing can be published to "{repo_id}". '
            f"Publish under one of: {', '.join(roles)}."
        )
    if folded[namespace.casefold()] == "read":
        raise HubError(
            f'"{user}" has read-only access to the organization "{namespace}". Ask its owners for write access, '
            f'or publish to "{user}/{name}".'
        )
    return repo_id
