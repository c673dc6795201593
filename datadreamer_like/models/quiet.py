"""Silencing logs and progress bars of Hugging Face libraries, since the session shows its own."""

from __future__ import annotations

import contextlib
import logging as python_logging
import warnings
from collections.abc import Iterator
from typing import Any

from datadreamer_like.graph import current_session

# On a CPU its import logs advice on kernels; peft and transformers import it.
python_logging.getLogger("bitsandbytes").setLevel(python_logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers inside the block, unless the session was opened with `hf_log=True`."""
    from huggingface_hub import utils
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as logs

    gguf: Any = modeling_gguf_pytorch_utils
    logging: Any = logs
    gguf.tqdm = logging.tqdm  # its own bar cannot be switched off
    hub: Any = utils

    session = current_session()
    if session is not None and session.hf_log:
        yield
        return
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    quiet_hub = hub.are_progress_bars_disabled()
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
            if quiet_hub:
                hub.disable_progress_bars()
