"""What a warm process has loaded before it is forked; see `warm.py`."""

import gc

import peft  # noqa: F401
import sentence_transformers  # noqa: F401
import torch  # noqa: F401
import transformers
import trl

from datadreamer_like.models import LlamaCPP, OpenAI  # noqa: F401
from datadreamer_like.stages import Compare, Prune, Quantize  # noqa: F401
from datadreamer_like.steps import DataSource, Prompt  # noqa: F401
from datadreamer_like.trainers import TrainHFClassifier, TrainHFDPO, TrainSentenceTransformer  # noqa: F401

LAZY = [transformers.Trainer, transformers.AutoModel, transformers.AutoTokenizer, trl.DPOTrainer]

gc.collect()
gc.freeze()  # Collections in the forks neither walk nor copy what is loaded here.
