"""The layout of a dataset repository: configuration, splits, shards, and their metadata in the card."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from datadreamer_like.errors import ArgumentTypeError, EmptyDataset, HubError

from .card import table

DEFAULT_CONFIG = "default"


@dataclass
class Layout:
    """The layout of a dataset in its repository, completed as shards are written.

    Attributes:
        splits: Rows by split.
        config: Name of the configuration.
        num_bytes: Arrow bytes of each split's rows.
        download_size: Bytes of all shards.
        paths: Paths of the shards in the repository.
    """

    splits: dict[str, datasets.Dataset]
    config: str
    num_bytes: dict[str, int] = field(default_factory=dict)
    download_size: int = 0
    paths: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: datasets.Dataset | datasets.DatasetDict, config_name: str | None) -> Layout:
        """Checks that a dataset can be published.

        Raises:
            ArgumentTypeError: It is another kind of dataset.
            EmptyDataset: There is no split, or one has no rows.
            HubError: The name of a split or of the configuration is invalid, or splits differ in their columns.
        """
        splits = {str(name): rows for name, rows in data.items()} if isinstance(data, dict) else {"train": data}
        if not splits:
            raise EmptyDataset("There are no splits to publish. Check the step that made the dataset.")
        config = config_name or DEFAULT_CONFIG
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", config) or config == "data":
            raise HubError(f'"{config}" cannot name a configuration. Use letters, digits, "-", "_" and ".".')
        for name, rows in splits.items():
            if not isinstance(rows, datasets.Dataset):
                raise ArgumentTypeError(
                    f"{type(rows).__name__} cannot be published. Give a Dataset or a DatasetDict; "
                    "save lazy rows to disk first."
                )
            if not re.fullmatch(r"\w+(\.\w+)*", name):
                raise HubError(f'"{name}" cannot name a split. Use letters, digits, "_" and ".", such as "train".')
            first = next(iter(splits.values()))
            if rows.features != first.features:
                raise HubError(
                    f'The splits differ in their columns: "{next(iter(splits))}" has {first.features}, "{name}" has '
                    f"{rows.features}. Give all splits the same columns, or publish them under different config_name."
                )
            if not len(rows):
                raise EmptyDataset(
                    f'The split "{name}" has no rows, and `load_dataset` fails on such a dataset. '
                    "Leave the split out, or check the step that made it."
                )
        return cls(splits, config)

    @property
    def is_default(self) -> bool:
        """Whether this is the default configuration of `load_dataset`."""
        return self.config == DEFAULT_CONFIG

    @property
    def data_dir(self) -> str:
        """Folder of the shards in the repository."""
        return "data" if self.is_default else self.config

    @property
    def rows(self) -> int:
        """Rows in all splits."""
        return sum(len(rows) for rows in self.splits.values())

    def metadata(self) -> dict[str, Any]:
        """Returns the card's keys for splits and features."""
        info = datasets.DatasetInfo(
            features=next(iter(self.splits.values())).features,
            splits=datasets.splits.SplitDict(
                {
                    name: datasets.SplitInfo(name, num_bytes=self.num_bytes.get(name, 0), num_examples=len(rows))
                    for name, rows in self.splits.items()
                }
            ),
            download_size=self.download_size,
            dataset_size=sum(self.num_bytes.values()),
        )
        files = [{"split": name, "path": f"{self.data_dir}/{name}-*"} for name in self.splits]
        data = DatasetCardData()
        DatasetInfosDict({self.config: info}).to_dataset_card_data(data)
        MetadataConfigs({self.config: {"data_files": files}}).to_dataset_card_data(data)
        return {"dataset_info": data["dataset_info"], "configs": data["configs"]}

    def description(self) -> str:
        """Returns the card's tables of splits and columns."""
        features = next(iter(self.splits.values())).features
        splits = table(("split", "rows"), [(name, f"{len(rows):,}") for name, rows in self.splits.items()])
        columns = table(("column", "type"), [(name, _type(feature)) for name, feature in features.items()])
        return f"## What is in it\n\n{splits}\n\n{columns}"

    def is_stale(self, path: str) -> bool:
        """Returns whether a path is a shard of an earlier version that this one does not have."""
        return path not in self.paths and bool(
            re.fullmatch(rf"{re.escape(self.data_dir)}/[^/]+-\d{{5}}-of-\d{{5}}(-[0-9a-f]+)?\.parquet", path)
        )


def _type(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"label: {', '.join(feature.names)}"
    if isinstance(feature, datasets.Value):
        return str(feature.dtype)
    return str(feature)
