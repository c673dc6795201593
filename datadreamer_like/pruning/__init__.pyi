from .heads import Heads as Heads
from .layers import Layers as Layers
from .magnitude import Magnitude as Magnitude
from .masks import cubic_sparsity as cubic_sparsity
from .masks import masks as masks
from .masks import reapply as reapply
from .method import Batches as Batches
from .method import PruningMethod as PruningMethod
from .vocabulary import Vocabulary as Vocabulary

__all__: list[str] = [
    "Batches",
    "Heads",
    "Layers",
    "Magnitude",
    "PruningMethod",
    "Vocabulary",
    "cubic_sparsity",
    "masks",
    "reapply",
]
