"""What a warm process has loaded before it is forked; see `warm.py`."""

import gc
import os

import datasets  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import PIL.Image
import pytest  # noqa: F401
import requests  # noqa: F401
import sentence_transformers  # noqa: F401
import tiny_models  # noqa: F401
import torch
import transformers
import trl
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from datadreamer_like.graph.installed import installed_id
from datadreamer_like.models import LlamaCPP, OpenAI  # noqa: F401
from datadreamer_like.report.plots import curves, write_png
from datadreamer_like.stages import Compare, Prune, Quantize  # noqa: F401
from datadreamer_like.steps import DataSource, Prompt  # noqa: F401
from datadreamer_like.trainers import (  # noqa: F401
    TrainHFClassifier,
    TrainHFDPO,
    TrainHFFineTune,
    TrainHFGRPO,
    TrainHFPPO,
    TrainHFRewardModel,
    TrainHFRLOO,
    TrainSentenceTransformer,
)

LAZY = [
    transformers.Trainer,
    transformers.AutoModel,
    transformers.AutoTokenizer,
    trl.DPOTrainer,
    trl.GRPOTrainer,
    trl.RLOOTrainer,
]

# What they find out once in each process.
installed_id(torch)
get_checkpoint_conversion_mapping("bert")
PIL.Image.preinit()
write_png(curves({"loss": ([0, 1], [1, 0])}, "x", "y"), os.devnull)
gc.collect()
gc.freeze()  # Collections in the forks neither walk nor copy what is loaded here.
