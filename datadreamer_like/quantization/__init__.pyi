from .dynamic_int8 import DynamicInt8 as DynamicInt8
