"""How a compressed model is written down in its folder, and rebuilt before its weights are loaded.

`config.json` carries an ordered list of **layout entries**, plain JSON: what was done to the modules of the
architecture that `model_type` names. Importing this room teaches transformers to read that list, so that in a fresh
process `AutoModelForSequenceClassification.from_pretrained(folder)` gives the pruned and quantized model back.

    {"quant_method": "datadreamer_like", "format": 1, "layouts": [
        {"kind": "widths", "format": 1, "modules": {"bert.encoder.layer.0.attention.self.query": {"out": 192}}},
        {"kind": "sparse", "format": 1, "modules": {"bert.encoder.layer.0.intermediate.dense": {"weight": 117964}}}]}

Adding a kind takes one file here: subclass `LayoutKind`, give it a name, write `rebuild` (and `finish`, `pack`,
`unpack` where tensors are stored in another form than they are used in), and call `register(kind)` at the end of the
file; every file of this room is imported with it. A method that produces the layout changes the modules, then calls
`add_layout(model, entry)`. An entry names modules only under its key `modules` (a list, or a dict by name), so that
names can be followed when a model loses layers or is loaded without its head. Kinds are storage formats, so they live
here and not with the methods: whichever room a script imports, every kind is known.
"""

import importlib
import pkgutil

import lazy_loader

from datadreamer_like.errors import require_extra

require_extra("train", "torch", "transformers", what="Working on models")

for _module in pkgutil.iter_modules(__path__):  # importing them registers their kinds
    importlib.import_module(f"{__name__}.{_module.name}")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
