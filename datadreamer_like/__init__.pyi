from .graph import DataDreamer as DataDreamer
from .models import TrainedModel as TrainedModel
from .steps import concat as concat
from .steps import concurrent as concurrent
from .steps import step as step
from .steps import wait as wait
from .steps import zipped as zipped

__all__ = ["DataDreamer", "TrainedModel", "concat", "concurrent", "step", "wait", "zipped"]
