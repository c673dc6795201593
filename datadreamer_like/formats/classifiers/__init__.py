"""Classifiers that transformers has no architecture for: static embeddings, a frozen encoder's head, word counts.

Importing this package registers them with transformers, so that `AutoModelForSequenceClassification.from_pretrained`
loads their folders.
"""

from . import embedding, linear, static

__all__ = ["embedding", "linear", "static"]
