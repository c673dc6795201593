from .heads import Heads as Heads
from .layers import Layers as Layers
from .magnitude import Magnitude as Magnitude
from .retraining import cubic_sparsity as cubic_sparsity
from .retraining import masks as masks
from .retraining import reapply as reapply
from .vocabulary import Vocabulary as Vocabulary
from .wanda import Wanda as Wanda
