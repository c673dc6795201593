from .abstain import Abstain as Abstain
from .calibrate import Calibrate as Calibrate
from .compare import Compare as Compare
from .compression import Compression as Compression
from .fresh_weights import FreshWeights as FreshWeights
from .prune import Prune as Prune
from .quantize import Quantize as Quantize
from .stage import Stage as Stage
