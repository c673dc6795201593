"""`Answer` at the path that scripts for early versions import it from; new ones use `datadreamer_like.models`."""

from .llms.generation import Answer as Answer
