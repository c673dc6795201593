__version__: str

from . import distillation as distillation
from . import kernels as kernels
from . import models as models
from . import pruning as pruning
from . import quantization as quantization
from . import recipes as recipes
from . import stages as stages
from . import steps as steps
from . import trainers as trainers
from .graph import DataDreamer as DataDreamer
from .graph import RayEngine as RayEngine
from .models import TrainedModel as TrainedModel
from .steps import concat as concat
from .steps import concurrent as concurrent
from .steps import step as step
from .steps import wait as wait
from .steps import zipped as zipped
