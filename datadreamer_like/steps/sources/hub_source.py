"""The source for datasets on the Hugging Face Hub and other arguments of `datasets.load_dataset`."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from datadreamer_like.errors import ArgumentTypeError, DataError, HubError
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.fingerprint import ByContent
from datadreamer_like.graph.output import iterable_schema
from datadreamer_like.graph.results import Kept
from datadreamer_like.graph.rows import Rows

from ..base.columns import in_columns
from ..base.lazy_rows import LazyRowBatches
from ..base.options import NodeOptions, taken_options, takes_node_options
from .data_source import Source

logger = logging.getLogger("datadreamer_like")


class HFHubDataSource(Source):
    """Rows of a dataset on the Hugging Face Hub.

    The fingerprint contains the commit of the revision, so a new upload is detected; give a commit as the revision to
    pin it. Without a connection the commit of the last run is used. The token is that of `huggingface_hub` (`HF_TOKEN`
    or a login).

    Args:
        path: Id of the dataset, a local folder, or a format of `load_dataset` (with `data_files`).
        split: One split, or a part: `"train[:1000]"`. Optional if there is only one.
        revision: Branch, tag or commit.
        trust_remote_code: Accepted for DataDreamer scripts; `datasets` no longer runs code of datasets.
        streaming: Read rows lazily, and save nothing.
        **config_kwargs: Further arguments of `datasets.load_dataset`, and options of `Step`.

    Raises:
        HubError: The Hub rejects the request, or is unavailable and there is no local copy.
        DataError: There are several splits and none was given.
        EmptyDataset: There are no rows.
    """

    @takes_node_options
    def __init__(
        self,
        name: str,
        path: str,
        config_name: str | None = None,
        split: Any = None,
        revision: Any = None,
        trust_remote_code: bool = False,
        streaming: bool = False,
        **config_kwargs: Any,
    ) -> None:
        if not isinstance(path, str):
            raise ArgumentTypeError(f'"{name}": path is {type(path).__name__}; expected the id of a dataset.')
        self.path = path
        self.config_name = config_name
        self.split = None if split is None else str(split)
        self.revision = None if revision is None else str(revision)
        self.streaming = streaming
        step_options = taken_options(config_kwargs, NodeOptions.__annotations__)
        self.config = config_kwargs
        if trust_remote_code:
            logger.warning("%s: trust_remote_code changes nothing: datasets no longer runs code of datasets.", name)
        self._commit: str | None = None
        super().__init__(name, **step_options)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        (folder / "texts.csv").write_text("text\none\ntwo\n", encoding="utf-8")
        return {"path": "csv", "split": "train", "data_files": str(folder / "texts.csv")}

    def fingerprint_values(self) -> dict[str, Any]:
        """Returns the commit, or the content of local files, and the options."""
        origin: Any = self.path
        if os.path.exists(self.path):
            origin = ByContent(self.path)
        elif self._is_on_hub:
            self._commit = self._resolved()
            origin = (self.path, self._commit)
        values = {"revision of the dataset": origin, "configuration": self.config_name, "split": self.split}
        for key, value in self.config.items():
            if key != "token":
                values[f"option {key}"] = _by_content(value) if key in ("data_files", "data_dir") else value
        return values

    def run(self) -> Any:
        """Loads the dataset."""
        from datasets import DatasetDict, IterableDatasetDict, load_dataset

        self.register_data_card(DataCardType.DATASET_NAME, self.path)
        known = {"revision": self._commit or self.revision, "streaming": self.streaming}
        try:
            loaded = load_dataset(self.path, self.config_name, split=self.split, **known, **self.config)
        except Exception as error:
            raise HubError(
                f'"{self.name}": {self.path} cannot be loaded ({type(error).__name__}: {error}). Check its name, '
                "configuration, split and revision, and the token if it is private."
            ) from error
        if isinstance(loaded, DatasetDict | IterableDatasetDict):
            if len(loaded) > 1:
                raise DataError(
                    f'"{self.name}": {self.path} has the splits {", ".join(map(str, loaded))}. Choose one: '
                    f'split="{next(iter(loaded))}".'
                )
            loaded = next(iter(loaded.values()))
        self.register_data_card(DataCardType.LICENSE, loaded.info.license)
        self.register_data_card(DataCardType.CITATION, loaded.info.citation)
        self.register_data_card(DataCardType.URL, loaded.info.homepage)
        if self._is_on_hub:
            from huggingface_hub import constants

            self.register_data_card(DataCardType.DATASET_CARD, f"{constants.ENDPOINT}/datasets/{self.path}")
            self.register_data_card("Revision", known["revision"])
        if not self.streaming:
            self.found_columns(loaded.column_names)
            return Rows.of_dataset(loaded)
        names = self.found_columns(loaded.column_names or next(iter(loaded), {}))
        return LazyRowBatches(lambda: in_columns(loaded, names), like=iterable_schema(loaded, names))

    @property
    def _is_on_hub(self) -> bool:
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

        return not os.path.exists(self.path) and self.path not in _PACKAGED_DATASETS_MODULES

    def _resolved(self) -> str | None:
        """Returns the current commit of the revision, or the last known one where the Hub is unavailable."""
        if self.revision is not None and re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        from datadreamer_like.hub.request_errors import RequestFailed

        try:
            info = HfApi(token=self.config.get("token")).dataset_info(self.path, revision=self.revision, timeout=10)
            return str(info.sha)
        except (RequestFailed, OfflineModeIsEnabled, OSError, RuntimeError) as error:
            # Without a connection, libraries raise different errors.
            response = getattr(error, "response", None)
            if isinstance(error, HfHubHTTPError) and response is not None and response.status_code < 500:
                raise HubError(
                    f'"{self.name}": the Hub has no dataset {self.path}'
                    f"{f' at revision {self.revision}' if self.revision else ''} that you may read ({error}). Check "
                    "the name; for a private one, log in or set HF_TOKEN."
                ) from error
        known = self._known_commit()
        used = f"commit {known}" if known else "the local copy"
        logger.warning("%s: the Hub is unavailable; using %s of %s.", self.name, used, self.path)
        return known

    def _known_commit(self) -> str | None:
        origin = self.previous.result.get("commit") if self.previous is not None else None
        if origin and origin[:2] == [self.path, self.revision]:
            return str(origin[2])
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            copy = snapshot_download(self.path, repo_type="dataset", revision=self.revision, local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        return Path(copy).name

    def planned_rows(self) -> None:
        """Returns None: a plan downloads nothing."""

    def write_rows(self, rows: Rows, draft: Path) -> Kept:
        """Saves the rows, and records their commit."""
        kept = super().write_rows(rows, draft)
        if self._commit is not None:
            kept.manifest.result["commit"] = [self.path, self.revision, self._commit]
        return kept

    def describe_empty(self) -> str:
        """Returns which dataset and split are empty."""
        return f"{self.path} is empty{f' in split {self.split}' if self.split else ''}."


def _by_content(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _by_content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(item) for item in value]
    return ByContent(value) if isinstance(value, str | os.PathLike) and os.path.exists(value) else value
