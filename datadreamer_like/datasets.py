"""DataDreamer's name for the datasets that steps yield."""

from datadreamer_like.graph import (
    OutputDataset,
    OutputDatasetColumn,
    OutputIterableDataset,
    OutputIterableDatasetColumn,
)

__all__ = [
    "OutputDataset",
    "OutputDatasetColumn",
    "OutputIterableDataset",
    "OutputIterableDatasetColumn",
]
