"""Images in messages, in the forms of APIs other than OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datadreamer_like.errors import BadRequest


def anthropic_message(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a message whose images are in the form of Anthropic's Messages API; other parts stay as they are."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_anthropic_part(part) for part in content]}


def _anthropic_part(part: Any) -> Any:
    if not isinstance(part, dict) or part.get("type") != "image_url":
        return part
    image = part["image_url"]
    address = image if isinstance(image, str) else image["url"]
    if not address.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": address}}
    head, comma, data = address.removeprefix("data:").partition(",")
    media_type, _, encoding = head.rpartition(";")
    if not comma or encoding != "base64":
        raise BadRequest('An image has no data in base64. Pass it as "data:image/png;base64,...".')
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def with_texts_only(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns messages for chat templates that print a message's content: parts that are texts become one text.

    Raises:
        BadRequest: A part is not a text, such as an image.
    """
    made = []
    for message in messages:
        parts = message.get("content")
        if isinstance(parts, list) and message.get("role") != "tool":
            kinds = [part.get("type") if isinstance(part, Mapping) else part for part in parts]
            other = next((kind for kind in kinds if kind != "text"), None)
            if other is not None:
                raise BadRequest(
                    f"The model takes texts only, but a message has a part of the type {other!r:.200}. Leave it out, "
                    "or use a model of an API."
                )
            message = {**message, "content": "".join(str(part.get("text") or "") for part in parts)}
        made.append(message)
    return made
