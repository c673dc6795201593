"""DataDreamer's name for the task models of `datadreamer_like.models`."""

from datadreamer_like.models import HFClassificationTaskModel, ParallelTaskModel, TaskModel

__all__ = ["HFClassificationTaskModel", "ParallelTaskModel", "TaskModel"]
