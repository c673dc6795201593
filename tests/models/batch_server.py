"""A small HTTP server that speaks the batch APIs of OpenAI, Anthropic and Mistral, and misbehaves as it is told."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import anthropic_server
from flaky_server import Reply, completion, prompt_of

EXPIRED = object()
"""A fate: the line was not processed in time."""

TIME = "2026-11-26T10:00:00Z"


@dataclass
class Job:
    """One batch; `polls` is how often it was asked for."""

    id: str
    lines: list[dict[str, Any]]
    metadata: dict[str, str]
    file: str = ""
    polls: int = 0
    results: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    ended: bool = False


class BatchServer:
    """Serves in threads.

    Attributes:
        kind: "openai", "anthropic" or "mistral".
        fate: What becomes of a line, given its body and how often its prompt was processed: a completion or message, a
            pair of status and error, or `EXPIRED`. By default an echo.
        ends: How a batch ends, given its number: in the provider's own word.
        polls: How often a batch is asked for before it has ended.
        drop: Given a request's method and path, whether its connection is closed "before" or "after" it is obeyed.
        failure: The error of a batch that is refused as a whole, given its lines; None if it is not.
        billed: Prompts to how often they were processed.
    """

    def __init__(self, kind: str, fate: Callable[[dict[str, Any], int], Any] | None = None) -> None:
        self.kind = kind
        self.fate = fate or (lambda body, before: self.echo(body))
        self.ends: Callable[[int], str] = lambda number: {"openai": "completed", "mistral": "SUCCESS"}.get(kind, "")
        self.failure: Callable[[list[dict[str, Any]]], dict[str, str] | None] = lambda lines: None
        self.drop: Callable[[str, str], str | None] = lambda method, path: None
        self.polls = 1
        self.files: dict[str, tuple[str, bytes]] = {}
        self.jobs: list[Job] = []
        self.requests: list[tuple[str, str]] = []
        self.billed: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}" + ("" if self.kind == "anthropic" else "/v1")

    def count(self, method: str, path: str) -> int:
        """Returns how often a path was asked for."""
        return sum(each == method and bool(re.fullmatch(path, place)) for each, place in self.requests)

    def __enter__(self) -> Self:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer in one packet: else each waits 40 ms for an acknowledgement
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                self.obey("GET", b"")

            def do_POST(self) -> None:
                self.obey("POST", self.rfile.read(int(self.headers.get("content-length") or 0)))

            def obey(self, method: str, body: bytes) -> None:
                path = urlsplit(self.path).path.removeprefix("/v1")
                with server.lock:
                    server.requests.append((method, path))
                    when = server.drop(method, path)
                    found = None if when == "before" else server.answer(method, self.path, self.headers, body)
                if when is not None or found is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                status, content = found
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def echo(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns an answer that repeats the prompt; `n` times where a request has `n`."""
        if self.kind == "anthropic":
            return anthropic_server.message(f"echo: {prompt_of(body)}", usage={"service_tier": "batch"})
        return completion(Reply(f"echo: {prompt_of(body)}"), body)

    # What it is asked for

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        url = urlsplit(path)
        place, query = url.path.removeprefix("/v1"), {name: value[0] for name, value in parse_qs(url.query).items()}
        if place == "/files" and method == "POST":
            name = re.search(rb'filename="([^"]*)"', body)
            boundary = b"--" + re.search("boundary=(.*)", headers["content-type"])[1].encode()
            part = next(part for part in body.split(boundary) if b'name="file"' in part)
            assert name is not None
            file_id = f"file-{len(self.files)}"
            self.files[file_id] = (name[1].decode(), part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n"))
            return 200, self.file(file_id)
        if place == "/files":
            return 200, self.page([self.file(each) for each in reversed(self.files)], query)
        if match := re.fullmatch("/files/(.*)/content", place):
            return 200, self.files[match[1]][1]
        if place in ("/batches", "/batch/jobs", "/messages/batches"):
            if method == "GET":
                return 200, self.page([self.shown(job) for job in reversed(self.jobs)], query)
            return 200, self.shown(self.make(json.loads(body)))
        match = re.fullmatch("/(?:batches|batch/jobs|messages/batches)/([^/]*)(/results)?", place)
        job = None if match is None else next((job for job in self.jobs if job.id == match[1]), None)
        if job is None or match is None:
            return 404, {"error": {"message": f"No such thing: {place}", "type": "not_found_error"}}
        if match[2]:
            return 200, self.results(job)
        job.polls += 1
        if job.polls > self.polls and not job.ended:
            self.end(job)
        return 200, self.shown(job)

    def page(self, items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        if self.kind == "mistral":
            size, start = int(query["page_size"]), int(query["page"]) * int(query["page_size"])
            return {"object": "list", "data": items[start : start + size], "total": len(items)}
        name = "after_id" if self.kind == "anthropic" else "after"
        ids = [item["id"] for item in items]
        start, size = (ids.index(query[name]) + 1 if name in query else 0), min(2, int(query.get("limit", 20)))
        page = items[start : start + size]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return {"object": "list", "data": page, "has_more": start + size < len(items), **ends}

    def file(self, file_id: str) -> dict[str, Any]:
        name, content = self.files[file_id]
        fields = {"object": "file", "created_at": 1, "purpose": "batch", "status": "processed"}
        return {"id": file_id, "bytes": len(content), "filename": name, **fields}

    def make(self, body: dict[str, Any]) -> Job:
        number = len(self.jobs)
        if self.kind == "anthropic":
            job = Job(f"msgbatch_{number}", body["requests"], {})
        else:
            file = body["input_file_id"] if self.kind == "openai" else body["input_files"][0]
            assert body["endpoint"] in ("/v1/chat/completions", "/v1/responses")
            lines = [json.loads(line) for line in self.files[file][1].splitlines()]
            job = Job(f"batch_{number}", lines, body["metadata"], file)
        ids = [line["custom_id"] for line in job.lines]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", each) for each in ids)
        self.jobs.append(job)
        return job

    def end(self, job: Job) -> None:
        job.ended = True
        if self.failure(job.lines):
            return
        name = "params" if self.kind == "anthropic" else "body"
        for line in job.lines:
            prompt = prompt_of(line[name])
            said = self.fate(line[name], self.seen[prompt])
            self.seen[prompt] += 1
            self.billed[prompt] += isinstance(said, dict)
            job.results.append((line, said))
        job.results.reverse()  # in another order than that of the requests
        if self.kind != "anthropic":
            good = [self.line(line, said) for line, said in job.results if isinstance(said, dict)]
            bad = [self.line(line, said) for line, said in job.results if not isinstance(said, dict)]
            for kind, lines in (("output", good), ("error", [line for line in bad if line is not None])):
                if lines:
                    text = "\n".join(map(json.dumps, lines))
                    self.files[f"{job.id}-{kind}"] = (f"{job.id}-{kind}.jsonl", text.encode())

    def line(self, line: dict[str, Any], said: Any) -> dict[str, Any] | None:
        found = {"id": "batch_req_1", "custom_id": line["custom_id"], "response": None, "error": None}
        if said is EXPIRED:
            if self.kind == "mistral":
                return None
            words = "This request could not be executed before the completion window expired."
            return {**found, "error": {"code": "batch_expired", "message": words}}
        status, body = (200, said) if isinstance(said, dict) else said
        return {**found, "response": {"status_code": status, "request_id": "r", "body": body}}

    def results(self, job: Job) -> bytes:
        lines = []
        for line, said in job.results:
            if said is EXPIRED:
                result = {"type": "expired"}
            elif isinstance(said, dict):
                result = {"type": "succeeded", "message": said}
            else:
                result = {"type": "errored", "error": {"type": "error", "error": said[1], "request_id": "r"}}
            lines.append(json.dumps({"custom_id": line["custom_id"], "result": result}))
        return "\n".join(lines).encode()

    def shown(self, job: Job) -> dict[str, Any]:
        failed = self.failure(job.lines) if job.ended else None
        number = self.jobs.index(job)
        good = sum(isinstance(said, dict) for _, said in job.results)
        expired = sum(said is EXPIRED for _, said in job.results)
        if self.kind == "anthropic":
            left = 0 if job.ended else len(job.lines)
            word = self.ends(number)
            counts = {
                "processing": left, "succeeded": good, "errored": len(job.results) - good - expired,
                "canceled": expired if word == "canceled" else 0, "expired": 0 if word == "canceled" else expired,
            }  # fmt: skip
            times = {"created_at": TIME, "expires_at": TIME, "ended_at": TIME if job.ended else None}
            return {
                "id": job.id, "type": "message_batch", "request_counts": counts, **times, "archived_at": None,
                "processing_status": "ended" if job.ended else "in_progress", "cancel_initiated_at": None,
                "results_url": f"{self.url}/v1/messages/batches/{job.id}/results" if job.ended else None,
            }  # fmt: skip
        output, errors = (
            f"{job.id}-{kind}" if f"{job.id}-{kind}" in self.files else None for kind in ("output", "error")
        )
        if self.kind == "mistral":
            status = ("FAILED" if failed else self.ends(number)) if job.ended else "RUNNING"
            return {
                "id": job.id, "object": "batch", "input_files": [job.file], "metadata": job.metadata, "model": "m",
                "endpoint": "/v1/chat/completions", "status": status, "output_file": output, "error_file": errors,
                "errors": [{"message": failed["message"], "count": 1}] if failed else [], "created_at": 1,
                "total_requests": len(job.lines), "completed_requests": len(job.results), "succeeded_requests": good,
                "failed_requests": len(job.results) - good,
            }  # fmt: skip
        status = ("failed" if failed else self.ends(number)) if job.ended else "in_progress"
        return {
            "id": job.id, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": job.file,
            "completion_window": "24h", "created_at": 1, "status": status, "metadata": job.metadata,
            "output_file_id": output, "error_file_id": errors,
            "errors": {"object": "list", "data": [{"line": None, "param": None, **failed}]} if failed else None,
            "request_counts": {
                "total": len(job.lines), "completed": good, "failed": len(job.results) - good - expired,
            },
        }  # fmt: skip
