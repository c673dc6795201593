from .background import concurrent as concurrent
from .background import wait as wait
from .derived import concat as concat
from .derived import zipped as zipped
from .step import Step as Step
from .step import SuperStep as SuperStep
from .step_output import LazyRowBatches as LazyRowBatches
from .step_output import LazyRows as LazyRows

__all__ = [
    "LazyRowBatches",
    "LazyRows",
    "Step",
    "SuperStep",
    "concat",
    "concurrent",
    "wait",
    "zipped",
]
