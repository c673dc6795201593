from .compare import Compare as Compare
from .compression import Compression as Compression
from .prune import Prune as Prune
from .quality import paired_differences as paired_differences
from .quantize import Quantize as Quantize
from .stage import Stage as Stage

__all__: list[str] = ["Compare", "Compression", "Prune", "Quantize", "Stage", "paired_differences"]
