from .card import Card as Card
from .card import DataCardType as DataCardType
from .card import sort_data_card as sort_data_card
from .dataset import OutputDataset as OutputDataset
from .dataset import OutputDatasetColumn as OutputDatasetColumn
from .dataset import OutputDatasetColumnMixin as OutputDatasetColumnMixin
from .dataset import OutputDatasetMixin as OutputDatasetMixin
from .dataset import OutputIterableDataset as OutputIterableDataset
from .dataset import OutputIterableDatasetColumn as OutputIterableDatasetColumn
from .fingerprint import ByContent as ByContent
from .meter import Meter as Meter
from .meter import current_meter as current_meter
from .node import Node as Node
from .session import DataDreamer as DataDreamer
from .session import current_session as current_session

__all__ = [
    "ByContent",
    "Card",
    "DataCardType",
    "DataDreamer",
    "Meter",
    "Node",
    "OutputDataset",
    "OutputDatasetColumn",
    "OutputDatasetColumnMixin",
    "OutputDatasetMixin",
    "OutputIterableDataset",
    "OutputIterableDatasetColumn",
    "current_meter",
    "current_session",
    "sort_data_card",
]
