"""Ctrl-C ends any script within seconds, and what was finished is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

START = """
import asyncio, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from datadreamer_like import DataDreamer
from datadreamer_like.models import LLM, OpenAI
from datadreamer_like.steps import DataSource, Prompt, SuperStep, concurrent

def slow(row):
    time.sleep(0.02)
    return {"y": 1}

def stuck(row):
    time.sleep(100)

class Blocking(LLM):
    model_name = "blocking"
    async def answer(self, request):
        await asyncio.to_thread(time.sleep, 100)

class Deaf(LLM):
    model_name = "deaf"
    async def answer(self, request):
        while True:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                pass

class Nested(SuperStep):
    def setup(self):
        self.register_output("y")
    def run(self):
        made = DataSource("Inside", data={"x": list(range(1000))}).map(slow, lazy=False, background=True)
        return list(made.output["y"])

def served(status, seconds):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass
        def do_POST(self):
            time.sleep(seconds)
            self.send_response(status)
            self.send_header("retry-after", "600")
            self.end_headers()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return OpenAI("m", base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="some-key")

def prompt(name, llm, **options):
    return Prompt(name, inputs={"prompts": source.output["x"]}, args={"llm": llm}, **options)

with DataDreamer(sys.argv[1], engine=sys.argv[2]):
    source = DataSource("Source", data={"x": [f"question {i}" for i in range(3000)]})
    print("ready", flush=True)
"""

SCRIPTS = {
    "a background step": 'source.map(slow, lazy=False, background=True); time.sleep(100)',
    "the end of the block waits for a background step": 'source.map(slow, lazy=False, background=True)',
    "a background step is waited for": 'source.map(slow, lazy=False, background=True).output',
    "a background step in a call that blocks": 'source.map(stuck, lazy=False, background=True); time.sleep(100)',
    "concurrent in concurrent": '''
        concurrent(lambda: concurrent(lambda: source.map(slow, lazy=False)), lambda: time.sleep(100))
    ''',
    "a step that makes steps": 'Nested("Nested")',
    "a server that does not answer": 'prompt("P", served(200, 100))',
    "a server that does not answer, twice": '''
        concurrent(lambda: prompt("P1", served(200, 100)), lambda: prompt("P2", served(200, 100)))
    ''',
    "a background step that waits out a rate limit": 'prompt("P", served(429, 0), background=True); time.sleep(100)',
    "a retry": 'prompt("P", served(503, 0))',
    "an LLM that blocks a thread": 'prompt("P", Blocking())',
    "workers of Ray": 'source.map(slow, lazy=False)',
    "an LLM that ignores its cancellation": 'prompt("P", Deaf())',
}  # fmt: skip


def interrupted(script: str, *arguments: str, seconds: float) -> tuple[str, float]:
    """Interrupts a script some seconds after it printed "ready"; returns its standard error, and how long it took."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as a test run may be, ignores the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        time.sleep(seconds)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
        took = time.monotonic() - began
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    return said, took


@pytest.mark.parametrize("busy_with", [pytest.param(s, marks=pytest.mark.slow if "Ray" in s else ()) for s in SCRIPTS])
def test_ctrl_c_ends_a_script(busy_with: str, tmp_path: Path) -> None:
    if "Ray" in busy_with:
        pytest.importorskip("ray", reason="Ray is not installed")
    script = START + textwrap.indent(textwrap.dedent(SCRIPTS[busy_with]), "    ")
    said, took = interrupted(script, str(tmp_path / "out"), "ray" if "Ray" in busy_with else "local", seconds=0.7)
    assert "Interrupted. Finished work is saved" in said, said
    assert not re.search(r"\.(py|cc)\b", said), said
    # Two seconds, and some for a machine that is busy with other tests; Ray ends a dozen processes.
    assert took < (8 if "Ray" in busy_with else 4)
    assert json.loads((tmp_path / "out" / "source" / "node.json").read_text())["rows"] == 3000
    assert not list((tmp_path / "out").glob("source-*"))


@pytest.mark.slow
def test_ctrl_c_while_ray_starts_shows_no_stack_trace(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    script = (
        "import sys\nfrom datadreamer_like import DataDreamer\n"
        "print('ready', flush=True)\nDataDreamer(sys.argv[1], engine='ray').start()\nprint('started', flush=True)\n"
        "import time; time.sleep(100)"
    )
    said, _ = interrupted(script, str(tmp_path / "out"), seconds=2.5)
    assert said == "Interrupted. Finished work is saved: run the script again and it continues.\n"
