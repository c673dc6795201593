from .classifier import TrainHFClassifier as TrainHFClassifier
from .dpo import TrainHFDPO as TrainHFDPO
from .fine_tune import TrainHFFineTune as TrainHFFineTune
from .masked_lm import TrainHFMaskedLM as TrainHFMaskedLM
from .trainer import Trainer as Trainer
from .training.options import HFOptions as HFOptions
from .training.options import Training as Training
from .training.options import TrainingOptions as TrainingOptions
