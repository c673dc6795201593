"""Scripts in processes that start with the heavy libraries loaded: forks of a server, one for all workers of pytest.

Loading torch, transformers and trl takes seconds of a processor, more than most scripts of the tests do. What concerns
loading itself, such as what is printed by it, needs a fresh interpreter instead, and what concerns what our package
brings with it, a process that has only torch and transformers: a plain one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from multiprocessing import forkserver, resource_tracker
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import torch
from warm_server import addresses

# CUDA cannot be used in a fork of a process that has loaded it.
CONTEXT = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")


class _Servers(forkserver.ForkServer):
    """What `CONTEXT` asks for processes."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = 1
        self._forkserver_alive_fd = os.open(
            os.devnull, os.O_WRONLY
        )  # the servers end with the process that starts them

    def ensure_running(self) -> None:
        resource_tracker.ensure_running()
        self._forkserver_address = addresses()[self.kind]

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Lets processes that are started in the block have torch and transformers loaded, and nothing of ours."""
        self.kind = 0
        try:
            yield
        finally:
            self.kind = 1


_servers = _Servers()
forkserver.connect_to_new_process = _servers.connect_to_new_process


class WarmProcess:
    """A running script, with the part of `subprocess.Popen` that tests use: its output is in pipes, as text."""

    def __init__(
        self, file: Path, arguments: list[str], environment: dict[str, str], folder: Path, plain: bool = False
    ) -> None:
        self.args = [str(file), *arguments]
        readers, writers = zip(os.pipe(), os.pipe(), strict=True)
        ends = [DupFd(writer) for writer in writers]
        self._process = CONTEXT.Process(target=_run, args=(self.args, environment, str(folder), *ends))
        with _servers.plain() if plain else nullcontext():
            self._process.start()
        for writer in writers:
            os.close(writer)
        self.stdout, self.stderr = (os.fdopen(reader, encoding="utf-8") for reader in readers)
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; raises `TimeoutError`."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"{self.args[0]} has run for more than {timeout} seconds.")
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Reads what is left of the output, and waits for the end."""
        found: dict[str, str] = {}
        readers = [
            threading.Thread(target=lambda name=name: found.update({name: getattr(self, name).read()}), daemon=True)
            for name in ("stdout", "stderr")
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        self.stdout.close()
        self.stderr.close()
        return found["stdout"], found["stderr"]


def printed_by(code: str, *arguments: str, environment: Mapping[str, str] = os.environ, plain: bool = False) -> str:
    """Runs code in a warm process, as `python -c CODE ARGUMENTS`, and returns what it prints; refuses a failure."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.py"
        file.write_text(code, encoding="utf-8")
        process = WarmProcess(file, list(arguments), dict(environment), Path(folder), plain)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, out + err
    return out


def _run(arguments: list[str], environment: dict[str, str], folder: str, *ends: Any) -> None:
    """What a process runs: the script as `python FILE ARGUMENTS` would, in its folder."""
    for place, end in enumerate(ends, start=1):
        descriptor = end.detach()
        os.dup2(descriptor, place)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(place, "w", encoding="utf-8", buffering=1) for place in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    if environment.keys() >= {"HF_ENDPOINT", "HF_HOME"}:  # the libraries have read others
        from hub_server import take_for_hub

        take_for_hub(setattr, environment["HF_ENDPOINT"], Path(environment["HF_HOME"]))
    os.chdir(folder)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
