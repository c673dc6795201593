"""The Ray engine refuses early, and in bounded time, what cannot work."""

import importlib.util
import socket
import time

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MissingExtra, SessionError
from datadreamer_like.graph.ray_engine import RayEngine


def test_without_ray_the_pip_command_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    with pytest.raises(MissingExtra, match=r'RayEngine needs ray.*pip install "datadreamer-like\[ray\]"'):
        DataDreamer(tmp_path, engine="ray")
    assert not DataDreamer.initialized()


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nowhere.invalid:6379", "no port"])
def test_an_address_where_nothing_listens_is_refused_at_once(tmp_path, address):
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    session = DataDreamer(tmp_path, engine=RayEngine(address.format(port=port), timeout=5))
    started = time.monotonic()
    with pytest.raises(SessionError, match="No Ray cluster answers at .*ray start --head"):
        session.start()
    assert time.monotonic() - started < 60
    assert not DataDreamer.initialized()


@pytest.mark.slow
def test_a_server_that_says_nothing_is_given_up_after_the_timeout(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(SessionError, match=f"No Ray cluster answers at {address}"):
            DataDreamer(tmp_path, engine=RayEngine(address, timeout=3)).start()
        assert time.monotonic() - started < 60


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"batch_size": 0}, {"num_workers": "2"}, {"batch_size": 2.5}])
def test_an_option_out_of_its_range_is_refused(options):
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(DefinitionError, match=rf"{next(iter(options))} is .* must be an integer of at least 1"):
        RayEngine(**options)


def test_an_engine_that_is_none_is_refused(tmp_path):
    with pytest.raises(ArgumentTypeError, match='must be "local", "ray" or an engine'):
        DataDreamer(tmp_path, engine="spark")
