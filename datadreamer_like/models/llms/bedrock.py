"""Models on Amazon Bedrock, through its Converse API."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from datadreamer_like.errors import AuthenticationFailed, BadRequest, DefinitionError, MalformedAnswer, require_extra

from .answer_text import AnswerText, answer_of, answer_text
from .api_model import APIModel
from .endpoint import Endpoint, Quirks, shown_address
from .generation import Answer, GenerationOptions, Prompt, Request, Sampling
from .prices import Usage, counted
from .received import Received
from .schema import ANSWER_FIELD, object_schema, strict_schema
from .secrets import Secrets, hide_in_logs
from .thoughts import CONVERSE
from .tool_calls import tool_call
from .tool_messages import converse_result, converse_tools, converse_turn

logger = logging.getLogger("datadreamer_like")

_FINISH_REASONS = {
    "end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool_use", "max_tokens": "length",
    "model_context_window_exceeded": "length", "content_filtered": "content_filter",
    "guardrail_intervened": "guardrail_intervened", "malformed_model_output": "error", "malformed_tool_use": "error",
}  # fmt: skip
# Names of the API's inference parameters, by those that its servers use in refusals.
_INFERENCE = {
    "temperature": "temperature",
    "top_p": "topP",
    "max_tokens": "maxTokens",
    "stop_sequences": "stopSequences",
}


class BedrockOptions(GenerationOptions, total=False):
    """Options of Bedrock's API in addition to the common ones."""

    additional_model_request_fields: Mapping[str, Any]
    guardrail_config: Mapping[str, Any]
    performance_config: Mapping[str, Any]
    service_tier: str


class BedrockError(Exception):
    """A refusal of Bedrock, with the attributes by which `provider_error` maps errors of other SDKs."""

    def __init__(self, response: Mapping[str, Any]) -> None:
        said, about = response.get("Error", {}), response.get("ResponseMetadata", {})
        super().__init__(said.get("Message", ""))
        self.code = said.get("Code")
        self.body = {"message": f"{said.get('Message') or 'no reason is given'} ({self.code})"}
        self.status_code = about.get("HTTPStatusCode")
        self.response = SimpleNamespace(headers=about.get("HTTPHeaders", {}))


class Bedrock(APIModel):
    """A model on Amazon Bedrock, called by its Converse API.

    Credentials are those that boto3 finds (environment, profile, role, `AWS_BEARER_TOKEN_BEDROCK`) unless they are
    given; to an address outside Amazon's domains only given ones are sent. `n` answers take `n` requests. Schemas use
    Bedrock's structured outputs. Reasoning is in `Answer.reasoning`. There are no seeds, `repetition_penalty`,
    `logit_bias` or log-probabilities; what a model has of its own goes into `additional_model_request_fields`.

    Args:
        model_name: Id of a model or an inference profile, or an ARN.
        aws_access_key_id, aws_secret_access_key, aws_session_token: Credentials, instead of those that boto3 finds.
        aws_region_name: The region; by default `AWS_REGION`, `AWS_DEFAULT_REGION`, or that of the profile.
        retry_on_fail, cache_folder_path, **kwargs: See `APIModel`.

    Raises:
        MissingExtra: boto3 is not installed.
        AuthenticationFailed: There are no credentials.
        DefinitionError: The region is unknown.

    Example:
        >>> llm = Bedrock("amazon.nova-lite-v1:0", aws_region_name="us-east-1")  # doctest: +SKIP
        >>> llm.run(["The capital of France?"])                                  # doctest: +SKIP
        ['Paris']
    """

    endpoint = Endpoint(
        "Bedrock",
        base_url="https://amazonaws.com",
        key_variable="AWS_BEARER_TOKEN_BEDROCK",
        quirks=Quirks(
            seed_name=None,
            takes_n=False,
            tool_choices=frozenset({"auto", "required", "name"}),
            refuses=dict.fromkeys(("logit_bias", "top_logprobs", "repetition_penalty"), "Leave it out."),
        ),
        domains=("amazonaws.com.cn",),
        model_card="https://docs.aws.amazon.com/bedrock/latest/userguide/models-supported.html",
        license="https://aws.amazon.com/service-terms/",
    )
    sdk = "boto3"
    extra = "bedrock"
    extra_options = frozenset(BedrockOptions.__annotations__) - frozenset(GenerationOptions.__annotations__)

    if TYPE_CHECKING:

        def run(self, prompts: Iterable[Prompt], **options: Unpack[BedrockOptions]) -> Any:
            """See `LLM.run`."""

    def __init__(
        self,
        model_name: str,
        aws_access_key_id: str | None = None,
        aws_secret_access_key: str | None = None,
        aws_region_name: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        *,
        aws_session_token: str | None = None,
        base_url: str | None = None,
        **kwargs: Any,
    ) -> None:
        require_extra("bedrock", "boto3", what="Bedrock")
        if (aws_access_key_id is None) != (aws_secret_access_key is None):
            raise DefinitionError("Pass both aws_access_key_id and aws_secret_access_key, or neither.")
        self._credentials = (aws_access_key_id, aws_secret_access_key, aws_session_token)
        self._refused: set[str] = set()
        region = aws_region_name or os.environ.get("AWS_REGION") or self._session.region_name
        if not region:
            raise DefinitionError("Bedrock needs a region: pass aws_region_name=..., or set AWS_REGION.")
        self.aws_region_name = region
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        super().__init__(
            model_name,
            retry_on_fail=retry_on_fail,
            cache_folder_path=cache_folder_path,
            base_url=base_url or f"https://bedrock-runtime.{region}.{domain}",
            **kwargs,
        )

    @classmethod
    def example(cls, model: Any) -> Bedrock:
        """Returns an instance that sends no request, for tests and documentation."""
        return cls(str(model), "example-id", "example-key", "us-east-1")

    @cached_property
    def _received(self) -> Received:
        return Received()

    @cached_property
    def _session(self) -> Any:
        import boto3

        return boto3.Session()

    def find_key(self) -> str | None:
        """Returns None, since boto3 signs the requests; credentials that are missing are an error."""
        if self._credentials[0] is not None:
            return None
        if not self.endpoint.serves(self.base_url):
            raise AuthenticationFailed(
                f"{shown_address(self.base_url)} is not a server of Amazon, so that no credentials of the environment "
                "are sent there. Pass aws_access_key_id=... and aws_secret_access_key=..."
            )
        if os.environ.get("AWS_BEARER_TOKEN_BEDROCK") is None and self._session.get_credentials() is None:
            raise AuthenticationFailed(
                f'There are no credentials for "{self.model_name}" at {shown_address(self.base_url)}. Run '
                "`aws configure`, set AWS_BEARER_TOKEN_BEDROCK or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or pass "
                "aws_access_key_id=... and aws_secret_access_key=..."
            )
        return None

    @cached_property
    def secrets(self) -> Secrets:
        """What must not be in any text: the credentials."""
        return Secrets([*self._credentials[1:], os.environ.get("AWS_BEARER_TOKEN_BEDROCK")])

    def make_client(self, prefix: str) -> Any:
        """Returns boto3's client; the one for many requests at once is the same."""
        from botocore.config import Config

        key_id, secret, token = self._credentials
        options: dict[str, Any] = {
            "retries": {"total_max_attempts": 1},
            "read_timeout": self.timeout,
            "max_pool_connections": 4 * self.default_concurrency,
        }
        if key_id is not None:
            # Otherwise a bearer token of the environment has priority.
            options["signature_version"] = "v4"
        hide_in_logs(self.secrets, "botocore.auth", "botocore.endpoint", "botocore.hooks", "botocore.parsers")
        return self._session.client(
            "bedrock-runtime",
            region_name=self.aws_region_name,
            endpoint_url=self.base_url,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=Config(**options),
        )

    def identity(self) -> dict[str, Any]:
        """Returns the server's address without the region, and the system prompt."""
        own = self.endpoint.serves(self.base_url)
        address = self.endpoint.base_url if own else shown_address(self.base_url)
        return {"base_url": address, "system_prompt": self.system_prompt}

    def check(self, sampling: Sampling) -> None:
        """Refuses options that the API does not have, and schemas that it cannot enforce."""
        super().check(sampling)
        if sampling.schema is not None:
            self._output_config(sampling.schema)

    async def answer(self, request: Request) -> Answer:
        """Sends `n` requests, one after the other."""
        sampling = request.sampling
        found = self._received.of(request)
        while len(found) < sampling.n:
            found.append(await self.request(lambda: self._parameters(request)))
        self._received.done(request)
        try:
            texts = [_text(response, sampling.schema) for response in found]
            prices = self.prices if sampling.extra.get("service_tier") in (None, "default") else None
            tokens = counted([_usage(response["usage"]) for response in found], prices)
        except (AttributeError, KeyError, TypeError) as error:
            address = shown_address(self.base_url)
            raise MalformedAnswer(f"{address} sent an answer that cannot be read: {error!r}.") from error
        reasons = [_FINISH_REASONS.get(response["stopReason"], response["stopReason"]) for response in found]
        return self.without_secrets(answer_of(texts, finish_reasons=reasons, **tokens))

    async def send(self, client: Any, parameters: dict[str, Any]) -> tuple[Any, Mapping[str, str]]:
        """Sends one request, in a thread: boto3 has no asynchronous client."""
        from botocore.exceptions import ClientError

        sent = {name: value for name, value in parameters.items() if name not in (*_INFERENCE, "model")}
        inference = {_INFERENCE[name]: parameters[name] for name in _INFERENCE if name in parameters}
        if inference:
            sent["inferenceConfig"] = inference
        try:
            return await asyncio.to_thread(client.converse, modelId=parameters["model"], **sent), {}
        except ClientError as error:
            refusal = BedrockError(error.response)
        raise refusal

    def leave_out(self, name: str, unsupported: bool, sent: Mapping[str, Any]) -> bool:
        """Drops `temperature` or `top_p`, with a warning."""
        if not unsupported or name not in ("temperature", "top_p"):
            return False
        if name not in self._refused:
            logger.warning("%s does not support %s; it is left out.", self.display_name, name)
        self._refused.add(name)
        return True

    def _parameters(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        system, messages = _converse(request.messages(self.system_prompt))
        extra = {_camel(name): value for name, value in sampling.extra.items() if value is not None}
        if "serviceTier" in extra:
            extra["serviceTier"] = {"type": extra["serviceTier"]}
        parameters = {
            "model": self.model_name,
            "messages": messages,
            "system": system or None,
            "temperature": 0.0 if sampling.deterministic else sampling.temperature,
            "top_p": None if sampling.deterministic or sampling.top_p == 1.0 else sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "stop_sequences": list(sampling.stop) or None,
            "toolConfig": converse_tools(request.tools, sampling.tool_choice) if request.tools else None,
            "outputConfig": None if sampling.schema is None else self._output_config(sampling.schema),
            **extra,
        }
        return {name: value for name, value in parameters.items() if value is not None and name not in self._refused}

    def _output_config(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        strict = strict_schema(object_schema(schema)[0])
        if strict is None:
            raise DefinitionError(
                f"{self.display_name} cannot be constrained to this schema: structured outputs do not support some of "
                "its keywords, or objects with arbitrary properties."
            )
        shape = {"name": "answer", "schema": json.dumps(strict, ensure_ascii=False)}
        return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": shape}}}

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in super().__getstate__().items() if name != "_session"}
        return {**state, "_credentials": (None, None, None)}


def _converse(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns chat messages as the system's blocks and the others, in Bedrock's form."""
    system = [message for message in messages if message.get("role") in ("system", "developer")]
    rest = [message for message in messages if message.get("role") not in ("system", "developer")]
    blocks = list(itertools.chain.from_iterable(_blocks(message.get("content")) for message in system))
    made: list[dict[str, Any]] = []
    for message in rest:
        role = "user" if message["role"] == "tool" else message["role"]
        if message["role"] == "tool":
            content = [converse_result(message, _blocks)]
        else:
            calls = message.get("tool_calls")
            content = _blocks(message.get("content") or None if calls else message.get("content"))
            content = [_with_bytes(block) for block in converse_turn(content, message)] if calls else content
        if made and made[-1]["role"] == role == "user" and any("toolResult" in block for block in made[-1]["content"]):
            made[-1]["content"] += content  # all results of a turn, and what follows them, are one message
        else:
            made.append({"role": role, "content": content})
    return blocks, made


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"text": content}] if isinstance(content, str) else [_block(part) for part in content or ()]


def _with_text(block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a block whose encrypted thought, which is bytes, is a text, as JSON needs it."""
    hidden = block.get("reasoningContent", {}).get("redactedContent")
    if not isinstance(hidden, bytes):
        return dict(block)
    return {"reasoningContent": {"redactedContent": {"base64": base64.b64encode(hidden).decode()}}}


def _with_bytes(block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a block of `_with_text` as it was."""
    hidden = block.get("reasoningContent", {}).get("redactedContent")
    if not isinstance(hidden, Mapping):
        return dict(block)
    return {"reasoningContent": {"redactedContent": base64.b64decode(hidden["base64"])}}


def _block(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"text": part["text"]}
    if part.get("type") != "image_url":
        return dict(part)  # one of Bedrock's own
    address = part["image_url"] if isinstance(part["image_url"], str) else part["image_url"]["url"]
    head, _, data = str(address).partition(";base64,")
    if not data:
        raise BadRequest('Bedrock takes no addresses of images. Pass the image as "data:image/png;base64,...".')
    return {
        "image": {"format": head.rpartition("/")[2].replace("jpg", "jpeg"), "source": {"bytes": base64.b64decode(data)}}
    }


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def _text(response: Mapping[str, Any], schema: Mapping[str, Any] | None) -> AnswerText:
    blocks = response["output"]["message"]["content"]
    thoughts = [
        block["reasoningContent"].get("reasoningText", {}).get("text")
        for block in blocks
        if "reasoningContent" in block
    ]
    texts = [block["text"] for block in blocks if "text" in block]
    content = "".join(texts) if texts else None
    if content is not None and schema is not None and object_schema(schema)[1]:
        content = _unwrapped(content)
    uses = [block["toolUse"] for block in blocks if "toolUse" in block]
    signed = CONVERSE.thoughts(map(_with_text, blocks), lambda block: "toolUse" in block) if uses else []
    calls = [
        tool_call(use.get("toolUseId"), use.get("name"), use.get("input"), thought=thought)
        for use, thought in zip(uses, signed, strict=True)
    ]
    reason = _FINISH_REASONS.get(response["stopReason"], response["stopReason"])
    reasoning = "\n".join(thought for thought in thoughts if thought) or None
    return answer_text(content, reason, reasoning=reasoning, shaped=schema is not None, calls=calls)


def _unwrapped(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return json.dumps(value.get(ANSWER_FIELD, value) if isinstance(value, dict) else value, ensure_ascii=False)


def _usage(usage: Mapping[str, int]) -> Usage:
    read, written = usage.get("cacheReadInputTokens", 0), usage.get("cacheWriteInputTokens", 0)
    return Usage(usage["inputTokens"] + read + written, usage["outputTokens"], read, written)
