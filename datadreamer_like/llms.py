"""DataDreamer's name for the LLMs of `datadreamer_like.models`."""

from datadreamer_like.models import LLM, HFTransformers, LlamaCPP, OpenAI

__all__ = ["LLM", "HFTransformers", "LlamaCPP", "OpenAI"]
