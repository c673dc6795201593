from .absmax import absmax_dequantize as absmax_dequantize
from .absmax import absmax_quantize as absmax_quantize
from .int8_linear import Granularity as Granularity
from .int8_linear import int8_linear as int8_linear
from .int8_matmul import PackedInt8Weight as PackedInt8Weight
from .int8_matmul import int8_matmul as int8_matmul
from .int8_matmul import pack_int8_weight as pack_int8_weight
from .wanda import wanda_mask as wanda_mask
