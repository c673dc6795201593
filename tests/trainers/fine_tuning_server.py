"""A small HTTP server that speaks OpenAI's API of files and fine-tuning jobs, and counts what it makes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Refusal = tuple[int, str]


class FineTuningServer:
    """Serves in threads.

    Attributes:
        requests: Method and path of all requests, in order.
        headers: Their headers.
        files, jobs: What was made, by id, as the API shows it.
        contents: Bytes of each file, by id.
        created: Bodies of the requests that created jobs.
        states: What a job is each time that it is asked for, in order; the last one stays.
        fault: Called with method and path before a request is handled and after it (`done`); it may return a refusal,
            "drop" for a lost connection, or raise nothing and return None.
    """

    def __init__(self, states: list[dict[str, Any]] | None = None) -> None:
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.states = states or [{"status": "succeeded"}]
        self.fault: Callable[[str, bool], Refusal | str | None] = lambda request, done: None
        self._asked: dict[str, int] = {}
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer in one packet: else each waits 40 ms for an acknowledgement
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                server.handle(self)

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def metrics(self, step: int, of: int = 10, **losses: float) -> None:
        """Adds an event with losses."""
        event = {"id": f"ev-{step}", "created_at": step, "level": "info", "message": f"Step {step}/{of}"}
        data = {"step": step, "total_steps": of, **losses}
        self.events.append({**event, "object": "fine_tuning.job.event", "type": "metrics", "data": data})

    def count(self, request: str) -> int:
        return sum(each == request for each in self.requests)

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        body = http.rfile.read(int(http.headers.get("content-length") or 0))
        url = urlsplit(http.path)
        request = f"{http.command} {re.sub('ftjob-[0-9]+', 'ID', url.path.removeprefix('/v1'))}"
        with self._lock:
            self.requests.append(request)
            self.headers.append({name.lower(): value for name, value in http.headers.items()})
            fault = self.fault(request, False)
            status, answer = 200, None
            if fault is None:
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                status, answer = self._answer(request, url.path, query, body, http.headers.get("content-type") or "")
                fault = self.fault(request, True)
        if fault == "drop":
            http.close_connection = True
            return
        if fault is not None:
            status, answer = int(fault[0]), {"error": {"message": fault[1], "type": None, "code": None, "param": None}}
        payload = json.dumps(answer).encode()
        try:
            http.send_response(status)
            http.send_header("content-type", "application/json")
            http.send_header("content-length", str(len(payload)))
            if status in (429, 503):
                http.send_header("retry-after", "0")
            http.end_headers()
            http.wfile.write(payload)
            http.wfile.flush()
        except OSError:  # the client was killed
            http.close_connection = True

    def _answer(self, request: str, path: str, query: dict[str, str], body: bytes, kind: str) -> tuple[int, Any]:
        if request == "POST /files":
            return 200, self._file(body, kind)
        if request == "GET /files":
            return 200, paged(list(self.files.values()), query)
        if request == "POST /fine_tuning/jobs":
            return 200, self._job(json.loads(body))
        if request == "GET /fine_tuning/jobs":
            return 200, paged(list(self.jobs.values()), query)
        if request == "GET /fine_tuning/jobs/ID/events":
            return 200, paged(self.events[::-1], query)
        if request == "GET /fine_tuning/jobs/ID":
            found = path.rpartition("/")[2]
            if found in self.jobs:
                return 200, self._state(found)
        return 404, {"error": {"message": f"There is no {path}.", "type": "invalid_request_error", "code": None}}

    def _file(self, body: bytes, kind: str) -> dict[str, Any]:
        boundary = b"--" + kind.partition("boundary=")[2].encode()
        fields: dict[str, Any] = {}
        for part in body.split(boundary)[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            names = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
            fields[names["name"]] = (names.get("filename"), content.removesuffix(b"\r\n"))
        name, content = fields["file"]
        made = f"file-{len(self.contents)}"
        self.contents[made] = content
        self.files[made] = {
            "id": made, "object": "file", "bytes": len(content), "created_at": 1, "filename": name,
            "purpose": fields["purpose"][1].decode(), "status": "processed",
        }  # fmt: skip
        return self.files[made]

    def _job(self, settings: dict[str, Any]) -> dict[str, Any]:
        self.created.append(settings)
        made = f"ftjob-{len(self.jobs)}"
        chosen = settings.get("method", {}).get("supervised", {}).get("hyperparameters", {})
        hyperparameters = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8, **chosen}
        self.jobs[made] = {
            "id": made, "object": "fine_tuning.job", "created_at": 1, "model": settings["model"], "status": "queued",
            "training_file": settings["training_file"], "validation_file": settings.get("validation_file"),
            "hyperparameters": hyperparameters, "organization_id": "org", "result_files": [], "seed": 1,
            "fine_tuned_model": None, "trained_tokens": None, "error": None,
        }  # fmt: skip
        return self.jobs[made]

    def _state(self, job: str) -> dict[str, Any]:
        turn = self._asked[job] = self._asked.get(job, -1) + 1
        state = dict(self.states[min(turn, len(self.states) - 1)])
        if state["status"] == "succeeded":
            name = f"ft:{self.jobs[job]['model']}:org::{job}"
            state = {"fine_tuned_model": name, "trained_tokens": 1_234, **state}
        self.jobs[job] |= state
        return self.jobs[job]


def paged(items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """A page of a list, of two items, so that all pages must be read."""
    names = [item["id"] for item in items]
    start = names.index(query["after"]) + 1 if "after" in query else 0
    page = items[start : start + 2]
    return {"object": "list", "data": page, "has_more": start + 2 < len(items)}
