"""File formats of compressed models: how they are saved, and rebuilt before their weights are loaded.

`config.json` has an ordered list of **layout entries** in JSON, which describe the changes to the modules of the
architecture in `model_type`. Importing this package registers it with transformers, so that
`AutoModelForSequenceClassification.from_pretrained(folder)` loads the pruned and quantized model.

    {"quant_method": "datadreamer_like", "format": 1, "layouts": [
        {"kind": "widths", "format": 1, "modules": {"bert.encoder.layer.0.attention.self.query": {"out": 192}}},
        {"kind": "sparse", "format": 1, "modules": {"bert.encoder.layer.0.intermediate.dense": {"weight": 117964}}}]}

A kind is one file here, which subclasses `LayoutKind` and calls `register(kind)`. An entry names modules only under its
key `modules` (a list, or a dict by name), so that they can be renamed when a model loses layers or its head.

`classifiers` has architectures of our own, which are registered with transformers in the same way.
"""

import importlib
import pkgutil

import lazy_loader

from datadreamer_like.errors import require_extra

require_extra("train", "torch", "transformers", what="Working on models")

for _module in pkgutil.iter_modules(__path__):  # importing them registers their kinds
    importlib.import_module(f"{__name__}.{_module.name}")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
