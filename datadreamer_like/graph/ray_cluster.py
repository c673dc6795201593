"""The Ray cluster that a process works on: its own, started for it, or one of others."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from datadreamer_like.errors import SessionError

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def start_cluster(cores: int) -> None:
    """Starts a cluster on this machine, and connects this process to it."""
    with _environment(), _without_notice():
        imported_ray().init(num_cpus=cores, include_dashboard=False, **_QUIET)


def connect(address: str, timeout: float) -> None:
    """Connects this process to a running cluster; raises `SessionError` if none answers within `timeout` seconds."""
    refused = SessionError(
        f"No Ray cluster answers at {address}. Start one with `ray start --head`, correct the address, or leave it "
        "out to run on this machine."
    )
    if address != "auto" and not _answers(address, timeout):
        raise refused
    try:
        with _environment(), _without_notice():
            imported_ray().init(address=address, **_QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise refused from error


def disconnect(is_own: bool) -> None:
    """Disconnects this process from its cluster, and ends one that `start_cluster` started."""
    if is_own:
        _end_autoscaler()
    imported_ray().shutdown()


def _answers(address: str, timeout: float) -> bool:
    """Returns whether a cluster answers; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=min(timeout, 10.0)):
            pass
        if address.startswith("ray://"):
            return True
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        return subprocess.run(command, capture_output=True, timeout=timeout, check=False).returncode == 0
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False


def _end_autoscaler() -> None:
    """Ends the autoscaler of a cluster on this machine, for which Ray would wait a second as it shuts down."""
    import psutil

    folder = os.path.join(os.path.dirname(imported_ray().__file__), "autoscaler")
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(argument.startswith(folder) for argument in child.cmdline()):
                child.kill()


def imported_ray() -> Any:
    """Imports Ray, which takes seconds, without its way to show errors."""
    hook = sys.excepthook
    ray: Any = importlib.import_module("ray")
    sys.excepthook = hook
    return ray


@contextmanager
def _environment() -> Iterator[None]:
    """Sets what workers of a new cluster inherit: where the script found its modules, and no reports on each actor."""
    wanted = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "RAY_BACKEND_LOG_LEVEL": "fatal"}
    before = {name: os.environ[name] for name in wanted if name in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _without_notice() -> Iterator[None]:
    """Keeps off the terminal the line in which Ray's C++ code says that it found the log level that we set."""
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            written.seek(0)
            os.write(2, b"".join(line for line in written if b"RAY_BACKEND_LOG_LEVEL" not in line))
