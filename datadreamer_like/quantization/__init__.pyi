from .dynamic_int8 import DynamicInt8 as DynamicInt8
from .method import Batches as Batches
from .method import QuantizationMethod as QuantizationMethod
