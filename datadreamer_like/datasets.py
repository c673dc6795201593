"""DataDreamer's name for the datasets that steps yield."""

from datadreamer_like.graph import (
    OutputDataset,
    OutputDatasetColumn,
    OutputDatasetColumnMixin,
    OutputDatasetMixin,
    OutputIterableDataset,
    OutputIterableDatasetColumn,
)

__all__ = [
    "OutputDataset",
    "OutputDatasetColumn",
    "OutputDatasetColumnMixin",
    "OutputDatasetMixin",
    "OutputIterableDataset",
    "OutputIterableDatasetColumn",
]
