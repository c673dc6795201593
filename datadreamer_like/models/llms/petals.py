"""LLMs whose layers run on a Petals swarm, for environments that still have the package."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import MissingExtra

from ..known_options import refuse_unknown_loading
from ..model import placed
from ..trained.hf_source import loading
from .chat_template import AUTO, Auto
from .hf_transformers import OTHER_NAMES, HFTransformers

if TYPE_CHECKING:
    import torch

# Fields of the configs of petals 2.2, its last release.
_SWARM_OPTIONS = frozenset({
    "active_adapter", "allowed_servers", "ban_timeout", "blocked_servers", "connect_timeout", "daemon_startup_timeout",
    "dht_prefix", "initial_peers", "max_backoff", "max_pinged", "max_retries", "min_backoff", "ping_n_servers",
    "ping_timeout", "pre_seq_len", "request_timeout", "show_route", "tuning_mode", "update_period",
    "use_server_to_server",
})  # fmt: skip


class Petals(HFTransformers):
    """A language model whose layers are served by other machines of a Petals swarm.

    The package petals 2.2, its last release, cannot be installed next to this one: it requires pydantic 1 and
    transformers 4, and a dependency of it downloads a program that no longer exists. The class is for environments that
    have a petals of their own; elsewhere it says so when it is made. `HFTransformers`, `VLLM` and `HFAPIEndpoint` are
    the ways to run the same models.

    Args:
        model_name, chat_prompt_template, system_prompt, revision, trust_remote_code: See `HFTransformers`.
        device, dtype, adapter_name, cache_folder_path: See `HFTransformers`.
        **kwargs: Further arguments of petals' `from_pretrained`, such as `initial_peers`.

    Raises:
        MissingExtra: petals is not installed.
    """

    def __init__(
        self,
        model_name: str,
        chat_prompt_template: str | Auto | None = AUTO,
        system_prompt: str | Auto | None = AUTO,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: int | str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        adapter_name: str | None = None,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        if importlib.util.find_spec("petals") is None:
            raise MissingExtra(
                "Petals needs petals, which cannot be installed any more: its last release, 2.2, requires pydantic 1 "
                'and transformers 4. Use HFTransformers (pip install "datadreamer-like[train]"), VLLM or HFAPIEndpoint.'
            )
        super().__init__(
            model_name,
            chat_prompt_template,
            system_prompt,
            revision,
            trust_remote_code,
            device,
            dtype=dtype,
            cache_folder_path=cache_folder_path,
            **kwargs,
        )
        # The swarm's servers load the adapter, so that it is a name for them.
        self.active_adapter = adapter_name

    def check_kwargs(self) -> None:
        """Refuses `kwargs` that neither petals nor `from_pretrained` takes.

        Raises:
            DefinitionError: A name is unknown.
        """
        names = self.kwargs.keys()
        refuse_unknown_loading(type(self), names, self._source, self._loading_options, _SWARM_OPTIONS, OTHER_NAMES)

    @cached_property
    def model(self) -> Any:
        """The distributed model: its embeddings here, its layers at the swarm's servers."""
        import petals

        device, _ = placed(self.device, self.device_map)
        adapter = {} if self.active_adapter is None else {"active_adapter": self.active_adapter}
        with loading(self._source):
            model = petals.AutoDistributedModelForCausalLM.from_pretrained(
                self._source.name, **{**self._loading_options, **self._typing(device), **adapter, **self.kwargs}
            )
        return model.to(device).eval()

    def identity(self) -> dict[str, Any]:
        """Returns what `HFTransformers` does, and the adapter."""
        return {**super().identity(), "adapter": self.active_adapter}
