from .classifier import TrainHFClassifier as TrainHFClassifier
from .fine_tune import TrainHFFineTune as TrainHFFineTune
from .loading import HFOptions as HFOptions
from .options import Training as Training
from .options import TrainingOptions as TrainingOptions
from .trainer import Trainer as Trainer

__all__ = [
    "HFOptions",
    "TrainHFClassifier",
    "TrainHFFineTune",
    "Trainer",
    "Training",
    "TrainingOptions",
]
