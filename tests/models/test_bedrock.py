"""Bedrock's Converse API at the wire, through boto3."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import botocore.exceptions
import botocore.session
import pytest
from bedrock_server import BedrockServer, refused, said
from flaky_server import FlakyServer, Reply

from datadreamer_like.errors import (
    AuthenticationFailed,
    BadRequest,
    DefinitionError,
    ModelError,
    PromptTooLong,
    RateLimited,
    Unavailable,
    UnknownModel,
)
from datadreamer_like.models import Bedrock
from datadreamer_like.models.llms.bedrock import BedrockError
from datadreamer_like.models.llms.provider_errors import provider_error

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
SECRET = "S3cr3tAccessK3y/0123456789abcdefghijklmn"
PIXEL = "iVBORw0KGgo="


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_BEARER_TOKEN_BEDROCK", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def bedrock(server: FlakyServer, folder: Path, **options: Any) -> Bedrock:
    return Bedrock(
        "amazon.nova-lite-v1:0", "AKIA", SECRET, "us-east-1", base_url=server.url, cache_folder_path=folder, **options
    )


def test_it_has_datadreamers_arguments() -> None:
    assert list(inspect.signature(Bedrock.__init__).parameters)[1:7] == [
        "model_name", "aws_access_key_id", "aws_secret_access_key", "aws_region_name", "retry_on_fail",
        "cache_folder_path",
    ]  # fmt: skip


def test_a_request_is_as_documented_and_reasoning_is_apart_from_the_text(tmp_path: Path) -> None:
    thought = {"reasoningContent": {"reasoningText": {"text": "I think.", "signature": "x"}}}
    with BedrockServer(lambda body, before: said(thought, {"text": '{"a": 1}'}, cacheReadInputTokens=4)) as server:
        prices = {"input": 1e6, "cached_input": 1e5, "output": 1e6}
        llm = bedrock(server, tmp_path, system_prompt="Be brief.", prices=prices)
        image = {"type": "image_url", "image_url": {"url": f"data:image/jpg;base64,{PIXEL}"}}
        prompt = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
        options: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.5, "stop": ["."], "seed": 1}
        fields = {"additional_model_request_fields": {"top_k": 5}, "service_tier": "default"}
        (answer,) = llm.answers([prompt], n=2, schema=SCHEMA, **options, **fields)
    assert list(answer.texts) == ['{"a": 1}'] * 2
    assert answer.reasoning == ["I think."] * 2
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (14, 4, 8)
    assert answer.cost == pytest.approx(2 * (3 + 0.4 + 2))
    assert server.paths == ["/model/amazon.nova-lite-v1%3A0/converse"] * 2
    shape = {"name": "answer", "schema": json.dumps(SCHEMA)}
    assert server.requests[0] == {
        "system": [{"text": "Be brief."}],
        "messages": [
            {"role": "user",
             "content": [{"text": "What is it?"}, {"image": {"format": "jpeg", "source": {"bytes": PIXEL}}}]}
        ],
        "inferenceConfig": {"maxTokens": 9, "temperature": 0.5, "topP": 0.5, "stopSequences": ["."]},
        "additionalModelRequestFields": {"top_k": 5},
        "serviceTier": {"type": "default"},
        "outputConfig": {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": shape}}},
    }  # fmt: skip
    assert server.headers[0]["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIA/")
    assert SECRET not in str(server.headers)


def test_refusals_and_endings_mean_what_they_mean(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        prompt = body["messages"][-1]["content"][0]["text"]
        if prompt == "limited" and not before:
            return refused(429, "ThrottlingException", "Too many requests.", retry_after="0.01")
        if prompt == "warm" and "temperature" in body.get("inferenceConfig", {}):
            return refused(400, "ValidationException", "`temperature` is not supported by this model.")
        if prompt == "unknown":
            return refused(403, "UnrecognizedClientException", f"The security token {SECRET} is invalid.")
        endings = {
            "cut": said(stop="max_tokens"),
            "guarded": said({"text": "x"}, stop="guardrail_intervened"),
            "long": refused(400, "ValidationException", "Input is too long for requested model."),
        }
        return endings.get(prompt, said({"text": "fine"}))

    with BedrockServer(behave) as server:
        llm = bedrock(server, tmp_path)
        answers = list(llm.answers(["limited", "cut", "guarded", "long"]))
        assert [answer.text for answer in answers] == ["fine", None, None, None]
        assert "used up its tokens" in str(answers[1].error)
        assert "content filter" in str(answers[2].error)
        assert isinstance(answers[3].error, PromptTooLong)
        assert llm.run(["warm", "after"]) == ["fine", "fine"]
        with pytest.raises(AuthenticationFailed) as caught:
            llm.run(["unknown"])
    assert SECRET not in str(caught.value)


def test_what_the_api_lacks_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with BedrockServer() as server:
        llm = bedrock(server, tmp_path)
        for option in ({"logit_bias": {1: 1.0}}, {"top_logprobs": 1}, {"repetition_penalty": 1.1}):
            with pytest.raises(DefinitionError, match=f"Bedrock's API has no {next(iter(option))}"):
                llm.run(["a"], **option)
        with pytest.raises(DefinitionError, match="cannot be constrained"):
            llm.run(["a"], schema={"type": "object", "additionalProperties": {"type": "string"}})
        assert server.requests == []


def test_credentials_of_the_environment_go_to_amazon_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DefinitionError, match="needs a region"):
        Bedrock("m", "AKIA", SECRET)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with pytest.raises(AuthenticationFailed, match="AWS_BEARER_TOKEN_BEDROCK or AWS_ACCESS_KEY_ID"):
        Bedrock("m")
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "bearer-s3cr3t-0123456789")
    assert Bedrock("m").client.meta.endpoint_url == "https://bedrock-runtime.eu-west-1.amazonaws.com"
    with pytest.raises(AuthenticationFailed, match="is not a server of Amazon"):
        Bedrock("m", base_url="https://elsewhere.example")
    with pytest.raises(DefinitionError, match="both"):
        Bedrock("m", "AKIA")
    with BedrockServer(lambda body, before: said({"text": "fine"})) as server:
        llm = bedrock(server, tmp_path)
        assert llm.run(["a"]) == ["fine"]
    assert "bearer" not in str(server.headers).lower()
    assert SECRET.encode() not in pickle.dumps(llm)


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with BedrockServer() as server:
        pass
    llm = bedrock(server, tmp_path, retry_on_fail=False)
    with pytest.raises(Unavailable, match="did not answer"):
        llm.run(["a"])


KINDS = {
    "AccessDeniedException": AuthenticationFailed, "ThrottlingException": RateLimited,
    "ResourceNotFoundException": UnknownModel, "ModelTimeoutException": Unavailable,
    "InternalServerException": Unavailable, "ServiceUnavailableException": Unavailable,
    "ValidationException": BadRequest, "ModelNotReadyException": RateLimited, "ModelErrorException": ModelError,
}  # fmt: skip


def test_every_error_of_the_api_is_mapped() -> None:
    shapes = (
        botocore.session.get_session().get_service_model("bedrock-runtime").operation_model("Converse").error_shapes
    )
    assert {shape.name for shape in shapes} == KINDS.keys()
    for shape in shapes:
        about = {"HTTPStatusCode": shape.metadata["error"]["httpStatusCode"], "HTTPHeaders": {}}
        error = BedrockError({"Error": {"Code": shape.name, "Message": "hm"}, "ResponseMetadata": about})
        assert type(provider_error(error, "m", "http://a")) is KINDS[shape.name]


def test_every_failure_of_a_connection_is_unavailable_and_of_credentials_final() -> None:
    found = [kind for kind in vars(botocore.exceptions).values() if inspect.isclass(kind)]
    bases = (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError)
    connections = [kind for kind in found if issubclass(kind, bases)]
    assert len(connections) > 5
    for kind in connections:
        error = kind(endpoint_url="http://a", error="e", request="r", proxy_url="p")
        assert type(provider_error(error, "m", "http://a")) is Unavailable
    for kind in (botocore.exceptions.NoCredentialsError, botocore.exceptions.UnauthorizedSSOTokenError):
        assert type(provider_error(kind(), "m", "http://a")) is AuthenticationFailed
