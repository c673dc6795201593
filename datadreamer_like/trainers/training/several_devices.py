"""Training on several devices: a process for each runs transformers' loop, and DDP averages their gradients.

The process of the script starts them and waits: it alone has the session, its cache and the answers of teachers. Each
of them gets the run in a file, and the first one leaves the trained weights in another.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import dill
import torch
import torch.distributed as dist
from torch import nn

from datadreamer_like.errors import MethodMisfit, ModelError
from datadreamer_like.graph import Node, current_usage
from datadreamer_like.graph.usage import Usage, counting
from datadreamer_like.models.quiet import quiet
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.storage.folders import system_errors

from .checkpoints import CHECKPOINTS, newest_checkpoint
from .loop import Fit, Run, fit
from .share_loop import ShareLoop, WriteProgress

logger = logging.getLogger("datadreamer_like")

_RUN, _RESULT, _WEIGHTS, _PROGRESS = "run.pickle", "result.pickle", "weights.pt", "progress.json"
_COMMAND = f"from {__package__}.device_process import main; main()"
_POLL = 0.1
_GRACE = 2.0  # seconds for the errors of other processes, of which the first is the cause


def fit_on_devices(run: Run, devices: Sequence[torch.device]) -> Fit:
    """Trains a model in place like `fit`, with a process for each device, among which each batch is divided.

    The weights are those of one device but for the order of sums, and what is drawn at random. It resumes after a kill,
    on another number of devices too. No process outlives this one.

    Raises:
        ModelError: A process was killed, or ended without an error of its own.
        Exception: The first error that was raised in one of them.
    """
    folder = run.folder / "processes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # It removes damaged ones, so all processes find the same.
    checkpoint = newest_checkpoint(run.folder / CHECKPOINTS)
    if checkpoint is not None:
        logger.info("resuming from %s, where training was interrupted", checkpoint.name)
    run.model.to("cpu")
    write_run(run, folder / _RUN)
    # The processes meet at a store of this one, so its port is free.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(len(devices)):
            with (folder / f"{rank}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-c", _COMMAND, str(folder)],
                    env=_environment(rank, devices, store.port), stdin=subprocess.PIPE, stderr=log,
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for this process, which ends the others
                )  # fmt: skip
            processes.append(process)
        _wait(processes, devices, folder)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
    fitted: Fit = dill.loads((folder / _RESULT).read_bytes())
    weights = torch.load(folder / _WEIGHTS, map_location="cpu", mmap=True, weights_only=True)
    if run.model.load_state_dict(weights, strict=False).unexpected_keys:
        raise MethodMisfit(
            "A callback has changed the layers of the model, which training on several devices does not take over. "
            "Train on one device."
        )
    run.model.train(False)
    shutil.rmtree(folder, ignore_errors=True)
    return fitted


def train_share(folder: Path, rank: int) -> None:
    """Trains in one of the processes, and leaves the result, or the error, in the folder."""
    try:
        with quiet(), counting(Usage()):
            run = read_run(folder / _RUN)
            device = torch.device("cpu" if run.device.type == "cpu" else f"{run.device.type}:{rank}")
            training = replace(run.training, callbacks=(*run.training.callbacks, WriteProgress(folder / _PROGRESS)))
            fitted = fit(replace(run, device=device, training=training), ShareLoop)
        if rank == 0:
            with system_errors():
                torch.save(_changed(run.model), folder / _WEIGHTS)
            (folder / _RESULT).write_bytes(dill.dumps(fitted))
        dist.destroy_process_group()
    except BaseException as error:
        draft = folder / f"error-{rank}.draft"
        draft.write_bytes(dill.dumps((time.time(), _picklable(error))))
        draft.rename(folder / f"{rank}.error")
        os._exit(1)  # waits for no other process


def write_run(run: Run, path: Path) -> None:
    """Writes all that another process needs to train."""
    with path.open("wb") as file:
        _Pickler(file).dump(run)


def read_run(path: Path) -> Run:
    """Returns the run that another process has written."""
    with path.open("rb") as file:
        return cast("Run", _Unpickler(file).load())


class _Pickler(dill.Pickler):  # type: ignore[misc]  # dill is untyped
    """Pickles a run without the session's nodes: a trainer or stage becomes its model, which is loaded again."""

    def persistent_id(self, value: object) -> object:
        if isinstance(value, ModelNode):
            return value.trained
        return "a node of the session" if isinstance(value, Node) else None


class _Unpickler(dill.Unpickler):  # type: ignore[misc]  # dill is untyped
    def persistent_load(self, found: object) -> object:
        return None if isinstance(found, str) else found


def _environment(rank: int, devices: Sequence[torch.device], port: int) -> dict[str, str]:
    """Returns the environment of a process: the group that it is in, as torchrun would describe it, and its devices."""
    processes = str(len(devices))
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path),
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # the end of a process's log explains how it ended
    }  # fmt: skip
    if devices[0].type == "cuda":
        visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
        numbers = [each.index or 0 for each in devices]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(visible[each] if visible else str(each) for each in numbers)
    else:
        found["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // len(devices)))
        if sys.platform == "linux":
            found.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return found


def _wait(processes: Sequence[subprocess.Popen[bytes]], devices: Sequence[torch.device], folder: Path) -> None:
    """Waits for the end of all processes, and shows progress; raises the error of the first that failed."""
    while None in (codes := [process.poll() for process in processes]) and not any(codes):
        time.sleep(_POLL)
        _show_progress(folder / _PROGRESS)
    _show_progress(folder / _PROGRESS)
    if not any(process.returncode for process in processes):
        return
    killed = [rank for rank, process in enumerate(processes) if (process.returncode or 0) < 0]
    until = time.monotonic() + _GRACE
    while not killed and time.monotonic() < until and any(process.poll() is None for process in processes):
        time.sleep(_POLL)
    errors = [dill.loads(path.read_bytes()) for path in folder.glob("*.error")]
    if errors and not killed:
        raise min(errors, key=lambda each: each[0])[1]
    rank = killed[0] if killed else next(rank for rank, process in enumerate(processes) if process.returncode)
    code = processes[rank].returncode
    how = f"was killed by {signal.Signals(-code).name}" if killed else f"ended with exit code {code}"
    words = (folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise ModelError(
        f"The training process on {devices[rank]}, number {rank + 1} of {len(processes)}, {how}"
        f"{f' ({words[0]})' if words else ''}. If memory ran out, lower batch_size. Run the script again: training "
        "resumes after the last finished epoch."
    )


def _show_progress(path: Path) -> None:
    if path.exists():
        usage, found = current_usage(), json.loads(path.read_text(encoding="utf-8"))
        usage.total_rows, usage.note = found["total_rows"], found["note"]
        usage.add(rows=found["rows"] - usage.rows)


def _changed(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns what training may have changed: parameters that are not frozen, and buffers."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value.cpu() for name, value in model.state_dict().items() if name not in frozen}


def _picklable(error: BaseException) -> BaseException:
    """Returns the error, or one with its words if it cannot be restored in another process."""
    try:
        dill.loads(dill.dumps(error))
    except Exception:
        return ModelError(f"{type(error).__name__}: {error}")
    return error
