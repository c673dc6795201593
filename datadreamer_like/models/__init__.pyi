from .generation import Answer as Answer
from .generation import GenerationOptions as GenerationOptions
from .generation import Message as Message
from .generation import Request as Request
from .generation import Sampling as Sampling
from .generation import TokenLogprob as TokenLogprob
from .llm import LLM as LLM
from .openai import OpenAI as OpenAI

__all__ = [
    "Answer",
    "GenerationOptions",
    "LLM",
    "Message",
    "OpenAI",
    "Request",
    "Sampling",
    "TokenLogprob",
]
