"""Silencing logs and progress bars of Hugging Face libraries, since the session shows its own."""

from __future__ import annotations

import contextlib
import logging as python_logging
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from datadreamer_like.graph import current_session

# On a CPU its import logs advice on kernels; peft and transformers import it.
python_logging.getLogger("bitsandbytes").setLevel(python_logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers inside the block, unless the session was opened with `hf_log=True`."""
    session = current_session()
    if session is not None and session.hf_log:
        yield
        return
    # Modules are untyped when they are imported so.
    hub, logging = import_module("huggingface_hub.utils"), import_module("transformers.utils.logging")
    gguf: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    gguf.tqdm = logging.tqdm  # its own bar cannot be switched off
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    no_hub_bars = hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # if the environment disables the Hub's bars
                logging.enable_progress_bar()
            # This has enabled the Hub's bars too.
            if no_hub_bars:
                hub.disable_progress_bars()
