"""The prompt template of a language model, stored as the chat template of its tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datadreamer_like.errors import MethodMisfit

from ..llms.chat_template import AUTO, AutoText, given_text, is_text_template, split_text_template


def set_prompt_template(
    tokenizer: Any, template: AutoText = AUTO, system_prompt: AutoText = AUTO, *, encoder_decoder: bool = False
) -> None:
    """Stores a prompt template and a system prompt as the tokenizer's chat template.

    `template` is Jinja code over `messages`, a text with the placeholder `{{prompt}}`, None for the bare prompt, or
    AUTO for the tokenizer's own. `system_prompt` becomes its default, which one in the messages replaces; AUTO and None
    leave it to the template. With `encoder_decoder`, prompts go to an encoder, whose input has end tokens too.
    """
    system = given_text(system_prompt)
    own = tokenizer.get_chat_template() if tokenizer.chat_template else None
    jinja = own if template is AUTO else template
    if jinja is None and system:
        jinja = "{{system_prompt}}\n\n{{prompt}}"
    if jinja is None or (template is AUTO and not system):
        if template is not AUTO:
            tokenizer.chat_template = None
    elif is_text_template(jinja):
        tokenizer.chat_template = _from_text(tokenizer, str(jinja), system, encoder_decoder)
    elif system:
        default = f"{{'role': 'system', 'content': {_quoted(system)}}}"
        tokenizer.chat_template = (
            "{% if not messages or messages[0]['role'] != 'system' %}"
            f"{{% set messages = [{default}] + messages %}}{{% endif %}}{jinja}"
        )
    else:
        tokenizer.chat_template = jinja


def has_template(tokenizer: Any) -> bool:
    """Whether prompts are written by a chat template, which then writes the special tokens too."""
    return bool(tokenizer.chat_template)


def render(tokenizer: Any, prompt: str, answer: str) -> tuple[str, str]:
    """Returns a prompt and its answer, rendered with the tokenizer's chat template if it has one."""
    if not has_template(tokenizer):
        return prompt, answer
    messages = [{"role": "user", "content": prompt}]
    reply = {"role": "assistant", "content": answer}
    start = render_chat(tokenizer, messages, add_generation_prompt=True)
    whole = render_chat(tokenizer, [*messages, reply])
    # Some templates render earlier turns differently from the last one: then the answer is appended unchanged.
    return start, whole[len(start) :] if whole.startswith(start) else answer


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
    """Returns messages, rendered with the tokenizer's chat template.

    Raises:
        MethodMisfit: The template refuses them.
    """
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False))
    except Exception as error:  # a template is a program, which may raise anything
        prompts = [str(message.get("content")) for message in messages if message.get("role") == "user"]
        raise MethodMisfit(
            f"The chat template refuses the prompt {' '.join(prompts[:1])[:60]!r}: "
            f"{str(error) or type(error).__name__}. Pass another chat_prompt_template, or leave system_prompt out."
        ) from error


def marks_answers(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template marks the answers of the assistant with `{% generation %}`."""
    return bool(re.search(r"\{%-?\s*generation\b", str(tokenizer.chat_template or "")))


def _from_text(tokenizer: Any, template: str, system: str | None, encoder_decoder: bool) -> str:
    """Returns Jinja code that gives the same result as filling in the placeholders of a text."""
    before, after = _special_tokens(tokenizer)
    parts = []
    for part in split_text_template(template):
        if part == "{{prompt}}":
            parts.append("{{ message['content'] }}")
        elif part == "{{system_prompt}}":
            parts.append("{{ asked.system }}")
        elif part:
            parts.append(f"{{{{ {_quoted(part)} }}}}")
    # An encoder's input has end tokens; a prompt that is followed by its answer does not.
    end = f"{{{{ {_quoted(after)} }}}}" if encoder_decoder and after else ""
    return (
        (f"{{{{ {_quoted(before)} }}}}" if before else "")
        + f"{{% set asked = namespace(system={_quoted(system or '')}) %}}"
        + "{% for message in messages %}{% if message['role'] == 'system' %}{% set asked.system = message['content'] %}"
        + f"{{% elif message['role'] == 'user' %}}{''.join(parts)}{end}"
        + "{% else %}{{ message['content'] }}{% if not loop.last %}{{ eos_token or '' }}{% endif %}"
        + "{% endif %}{% endfor %}"
    )


def _special_tokens(tokenizer: Any) -> tuple[str, str]:
    """The special tokens that a tokenizer puts before and after a text."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            sides = whole[:start], whole[start + len(bare) :]
            return tuple("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in sides)  # type: ignore[return-value]
    return "", ""


def _quoted(text: str) -> str:
    """A Jinja string literal, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
