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
        splits: Rows by split; at least one split, each with rows and all with the same features.
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
        first_name, first = next(iter(splits.items()))
        for name, rows in splits.items():
            if not isinstance(rows, datasets.Dataset):
                raise ArgumentTypeError(
                    f"{type(rows).__name__} cannot be published. Give a Dataset or a DatasetDict; "
                    "save lazy rows to disk first."
                )
            if not re.fullmatch(r"\w+(\.\w+)*", name):
                raise HubError(f'"{name}" cannot name a split. Use letters, digits, "_" and ".", such as "train".')
            if rows.features != first.features:
                raise HubError(
                    f'The splits differ in their columns: "{first_name}" has {first.features}, "{name}" has '
                    f"{rows.features}. Give all splits the same columns, or publish them under different config_name."
                )
            if not len(rows):
                raise EmptyDataset(
                    f'The split "{name}" has no rows, and `load_dataset` fails on such a dataset. '
                    "Leave the split out, or check the step that made it."
                )
        return cls(splits, config)

    @property
    def features(self) -> datasets.Features:
        """The columns of every split."""
        return next(iter(self.splits.values())).features

    @property
    def data_dir(self) -> str:
        """Folder of the shards in the repository."""
        return "data" if self.config == DEFAULT_CONFIG else self.config

    def metadata(self) -> dict[str, Any]:
        """Returns the card's keys for splits and features."""
        splits = {name: (self.num_bytes.get(name, 0), len(rows)) for name, rows in self.splits.items()}
        info = datasets.DatasetInfo(
            features=self.features,
            splits=datasets.splits.SplitDict(
                {name: datasets.SplitInfo(name, size, rows) for name, (size, rows) in splits.items()}
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
        splits = table(("split", "rows"), [(name, f"{len(rows):,}") for name, rows in self.splits.items()])
        columns = table(("column", "type"), [(name, _type(feature)) for name, feature in self.features.items()])
        return f"{splits}\n\n{columns}"

    def is_stale(self, path: str) -> bool:
        """Returns whether a path is a shard of an earlier version that this one does not have."""
        shard = rf"{re.escape(self.data_dir)}/[^/]+-\d{{5}}-of-\d{{5}}(-[0-9a-f]+)?\.parquet"
        return path not in self.paths and re.fullmatch(shard, path) is not None


def _type(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"label: {', '.join(feature.names)}"
    return str(feature.dtype if isinstance(feature, datasets.Value) else feature)
