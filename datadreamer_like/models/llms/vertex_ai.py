"""Models on Google Cloud's Vertex AI."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from datadreamer_like.errors import AuthenticationFailed, DefinitionError, MissingExtra, require_extra

from .endpoint import Endpoint, Quirks, shown_address
from .openai_compatible import OpenAICompatible

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class VertexAI(OpenAICompatible):
    """A Gemini or other model on Vertex AI, through its endpoint with OpenAI's protocol.

    Requests carry an access token of Google Cloud's default credentials (`gcloud auth application-default login`, a
    service account, or the machine's own), which is renewed when it expires and is only sent to Google's hosts. The API
    has no seed, `repetition_penalty`, `logit_bias` or log-probabilities.

    Args:
        model_name: Such as `"google/gemini-2.5-flash"`; a name without a publisher is one of Google's.
        vertex_project: The project to bill; by default `VERTEXAI_PROJECT`, `GOOGLE_CLOUD_PROJECT`, or the credentials'.
        vertex_location: The region; by default `VERTEXAI_LOCATION`, `GOOGLE_CLOUD_LOCATION`, or `"global"`.
        api_key: An access token that does not expire while it is in use, instead of the default credentials.
        credentials: Credentials of the package `google-auth`, instead of the default ones.
        retry_on_fail, cache_folder_path, **kwargs: See `OpenAICompatible`.

    Raises:
        MissingExtra: `openai` is not installed, or `google-auth` is not, and no `api_key` is given.
        AuthenticationFailed: There are no default credentials.
        DefinitionError: The project is unknown.
    """

    endpoint = Endpoint(
        "VertexAI",
        base_url="https://aiplatform.googleapis.com",
        key_variable="GOOGLE_APPLICATION_CREDENTIALS",
        quirks=Quirks(
            seed_name=None,
            wants_back=frozenset({"extra_content"}),
            refuses={
                "repetition_penalty": "Use presence_penalty or frequency_penalty.",
                "logit_bias": "Leave it out.",
                "top_logprobs": "Leave it out, or use another provider.",
            },
        ),
        context_length=1_000_000,
        domains=("googleapis.com",),
        model_card="https://cloud.google.com/vertex-ai/generative-ai/docs/models",
        license="https://cloud.google.com/terms",
    )

    def __init__(
        self,
        model_name: str,
        vertex_project: str | None = None,
        vertex_location: str | None = None,
        retry_on_fail: bool = True,
        cache_folder_path: str | Path | None = None,
        *,
        api_key: str | None = None,
        credentials: Any = None,
        base_url: str | None = None,
        **kwargs: Any,
    ) -> None:
        require_extra("openai", "openai", what="VertexAI")
        self._given_credentials = credentials
        self._is_own = base_url is None or self.endpoint.serves(base_url)
        self._api_key = api_key
        found = None if api_key or credentials or not self._is_own else self._default[1]
        project = vertex_project or os.environ.get("VERTEXAI_PROJECT") or os.environ.get("GOOGLE_CLOUD_PROJECT")
        project = project or getattr(credentials, "project_id", None) or found
        if not project and base_url is None:
            raise DefinitionError("VertexAI needs a project: pass vertex_project=..., or set VERTEXAI_PROJECT.")
        location = vertex_location or os.environ.get("VERTEXAI_LOCATION") or os.environ.get("GOOGLE_CLOUD_LOCATION")
        location = location or "global"
        host = "aiplatform.googleapis.com" if location == "global" else f"{location}-aiplatform.googleapis.com"
        own = f"https://{host}/v1/projects/{project}/locations/{location}/endpoints/openapi"
        self.vertex_project, self.vertex_location = project, location
        super().__init__(
            model_name if "/" in model_name else f"google/{model_name}",
            api_key=api_key,
            retry_on_fail=retry_on_fail,
            cache_folder_path=cache_folder_path,
            base_url=base_url or own,
            **kwargs,
        )

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns an instance that sends no request, for tests and documentation."""
        return cls(str(model), vertex_project="example-project", api_key="example-key")

    @cached_property
    def _default(self) -> tuple[Any, str | None]:
        """Google Cloud's default credentials and their project."""
        if importlib.util.find_spec("google") is None or importlib.util.find_spec("google.auth") is None:
            raise MissingExtra(
                'VertexAI needs google-auth, which is not installed. Run: pip install "datadreamer-like[vertex]"'
            )
        import google.auth
        import google.auth.exceptions

        try:
            found: tuple[Any, str | None] = google.auth.default(scopes=[_SCOPE])
        except google.auth.exceptions.GoogleAuthError as error:
            raise AuthenticationFailed(
                "There are no credentials for Google Cloud. Run `gcloud auth application-default login`, set "
                "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or pass api_key=... (a token)."
            ) from error
        return found

    def find_key(self) -> str | None:
        """Returns the given token; None if `access_token` gives one for each request."""
        if self._api_key or not (self._given_credentials or self._is_own):
            return self._api_key or "none"
        return None

    def access_token(self) -> str:
        """Returns a valid token of the credentials, renewed if necessary; blocks while it is."""
        credentials = self._given_credentials or self._default[0]
        if not credentials.valid:
            from google.auth.exceptions import GoogleAuthError
            from google.auth.transport.requests import Request

            try:
                credentials.refresh(Request())
            except GoogleAuthError as error:
                words = self.secrets.taken_out_of(str(error))
                raise AuthenticationFailed(f"Google Cloud renews no token for {self.display_name}: {words}") from None
        return str(credentials.token)

    def client_options(self) -> dict[str, Any]:
        """Returns the arguments of the SDK's clients; each request sets its own token."""
        return {**super().client_options(), "api_key": self.key or "none"}

    def make_client(self, prefix: str) -> Any:
        """Returns a client of the SDK; the one for direct use keeps the token that is valid now."""
        client = super().make_client(prefix)
        if self.key is None and not prefix:
            client.api_key = self.access_token()
        return client

    async def send(self, client: Any, parameters: Mapping[str, Any]) -> tuple[Any, Mapping[str, str]]:
        """Sends one request with a valid token."""
        if self.key is None:
            client.api_key = await asyncio.to_thread(self.access_token)
        return await super().send(client, dict(parameters))

    def identity(self) -> dict[str, Any]:
        """Returns the server's address, without the project and region that it is billed to, and the system prompt."""
        address = self.base_url if not self._is_own else self.endpoint.base_url
        return {"base_url": shown_address(address), "system_prompt": self.system_prompt}

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in super().__getstate__().items() if name != "_default"}
        return {**state, "_given_credentials": None}


Vertex = VertexAI
"""The name of `VertexAI` in lists of providers."""
