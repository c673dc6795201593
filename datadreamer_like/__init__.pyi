from .graph import DataDreamer as DataDreamer

__all__ = ["DataDreamer"]
