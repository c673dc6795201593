"""`LLM` at the path that scripts for early versions import it from; new ones use `datadreamer_like.models`."""

from .llms.llm import LLM as LLM
