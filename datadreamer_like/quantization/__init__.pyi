from .dynamic_int8 import DynamicInt8 as DynamicInt8
from .nf4 import NF4 as NF4
