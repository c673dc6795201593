"""DataDreamer's name for the task models of `datadreamer_like.models`."""

from datadreamer_like.models import TaskModel

__all__ = ["TaskModel"]
