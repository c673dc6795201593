"""The process that warm processes are forks of; see `warm.py`. One serves all the workers of a run."""

from __future__ import annotations

import functools
import gc
import os
import select
import socket
import sys
from multiprocessing import forkserver, util
from pathlib import Path

_ADDRESSES = "WARM_SERVERS"
_alive = os.pipe()


@functools.cache
def addresses() -> list[str]:
    """Where processes are asked for, plain ones and full ones.

    The first call starts the servers, if no process that this one comes from did.
    """
    if _ADDRESSES not in os.environ:
        start()
    return os.environ[_ADDRESSES].split(os.pathsep)


def start(at_once: bool = False, seen: bool = True) -> None:
    """Starts the servers for this process and those that inherit its environment; they end with this process.

    They load the libraries at once, or at the first request. What their processes print, other than to pipes of their
    own, is seen or not.
    """
    found = [str(Path(util.get_temp_dir()) / name) for name in ("plain", "full")]
    listeners = [socket.socket(socket.AF_UNIX) for _ in found]
    for listener, address in zip(listeners, found, strict=True):
        listener.bind(address)
        listener.listen()
    passed = [*(listener.fileno() for listener in listeners), _alive[0]]
    code = f"import sys; sys.path[:] = {sys.path!r}; from warm_server import serve; serve(*{passed}, {at_once}, {seen})"
    util.spawnv_passfds(sys.executable.encode(), [sys.executable, "-c", code], passed)
    for listener in listeners:
        listener.close()
    os.environ[_ADDRESSES] = os.pathsep.join(found)


def serve(plain: int, full: int, alive: int, at_once: bool, seen: bool) -> None:
    """Forks for requests at two listening sockets, until the pipe `alive` has no writer.

    Processes asked for at `plain` have torch and transformers loaded and nothing of ours, those at `full` all of
    `warm_libraries`.
    """
    if not at_once and alive in select.select([plain, full, alive], [], [])[0]:
        return
    if not seen:
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    import torch  # noqa: F401
    import transformers

    _ = (
        transformers.AutoModel,
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForSequenceClassification,
        transformers.AutoTokenizer,
    )
    gc.collect()
    gc.freeze()  # Collections in the forks neither walk nor copy what is loaded here.
    if os.fork():
        os.close(plain)
        forkserver.main(full, alive, ["warm_libraries"])
    else:
        os.close(full)
        forkserver.main(plain, alive, [])
