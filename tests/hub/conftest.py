"""How a test talks to a Hub on this machine.

The fixture `hub_server` (from `tests/hub_server.py`, known to all rooms' tests) is a running, empty Hub. Its one user
is `me`, who may write under `me` and `my-team`, and only read under `my-readers`.

- In a process of its own, the way users meet it: `subprocess.run(..., env=hub_server.environment(tmp_path))`.
- In this process, quicker: `hub_server.connect(monkeypatch, tmp_path)`, or the fixture `hub` below.
- What arrived: `hub_server.commits("dataset", "me/x")` (messages, oldest first), `.files("model", "me/x", "branch")`,
  `.readme(...)`, `.card_data(...)`, `.requests`.
- Other people's repositories, that cards may link to: `hub_server.add_repo("model", "org/name")`; a few are there.
- Trouble: `hub_server.fail("POST .*/commit/", status=503)`; without a status the request is served, its answer lost.
"""

from pathlib import Path

import pytest
from hub_server import HubServer


@pytest.fixture
def hub(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """A fresh Hub that the libraries of this process are connected to."""
    hub_server.connect(monkeypatch, tmp_path / "hf-home")
    return hub_server
