from .calibration import Batches as Batches
from .calibration import Corpus as Corpus
from .method import CompressionMethod as CompressionMethod
from .while_training import CompressesWhileTraining as CompressesWhileTraining
