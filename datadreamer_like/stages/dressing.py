"""How a language model was taught to be asked: what its trainer put around each prompt."""

from __future__ import annotations

from typing import Any, NamedTuple

from datadreamer_like.models.chat_template import AUTO, AutoText
from datadreamer_like.models.trained_model import TrainedModel


class Dressing(NamedTuple):
    """What stands around a prompt, as `TrainHFFineTune` has it."""

    chat_prompt_template: AutoText = AUTO
    system_prompt: AutoText = AUTO


def dressing_of(model: TrainedModel) -> Dressing:
    """Returns what the model was fine-tuned with.

    A stage's model is asked as the model that the stage started from. Where no trainer of this session is behind a
    model, as with a folder, all is AUTO: the tokenizer's own template, if there is one.
    """
    node: Any = model.node
    while node is not None and not hasattr(node, "chat_prompt_template"):
        node = getattr(getattr(node, "source", None), "node", None)
    return Dressing() if node is None else Dressing(node.chat_prompt_template, node.system_prompt)
