from .chat_template import AUTO as AUTO
from .embedder import Embedder as Embedder
from .embedding_retriever import EmbeddingRetriever as EmbeddingRetriever
from .generation import Answer as Answer
from .generation import GenerationOptions as GenerationOptions
from .generation import Message as Message
from .generation import Request as Request
from .generation import Sampling as Sampling
from .generation import TokenLogprob as TokenLogprob
from .hf_transformers import HFTransformers as HFTransformers
from .llamacpp import LlamaCPP as LlamaCPP
from .llm import LLM as LLM
from .openai import OpenAI as OpenAI
from .retriever import Retrieved as Retrieved
from .retriever import Retriever as Retriever
from .sentence_transformers_embedder import SentenceTransformersEmbedder as SentenceTransformersEmbedder
from .task_model import TaskModel as TaskModel
from .text_calls import TextOptions as TextOptions
from .trained_model import TrainedModel as TrainedModel

__all__ = [
    "AUTO",
    "LLM",
    "Answer",
    "Embedder",
    "EmbeddingRetriever",
    "GenerationOptions",
    "HFTransformers",
    "LlamaCPP",
    "Message",
    "OpenAI",
    "Request",
    "Retrieved",
    "Retriever",
    "Sampling",
    "SentenceTransformersEmbedder",
    "TaskModel",
    "TextOptions",
    "TokenLogprob",
    "TrainedModel",
]
