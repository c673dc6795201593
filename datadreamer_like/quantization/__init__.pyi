from .absmax import AbsMax as AbsMax
from .binary import Binary as Binary
from .cast import Cast as Cast
from .dynamic_int8 import DynamicInt8 as DynamicInt8
from .gobo import GOBO as GOBO
from .llm_int8 import LLMInt8 as LLMInt8
from .nf4 import NF4 as NF4
from .zero_point import ZeroPoint as ZeroPoint
