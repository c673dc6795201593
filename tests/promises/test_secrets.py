"""Secrets never reach a file, a log, a card or what is published."""

from __future__ import annotations

from pathlib import Path

from flaky_server import FlakyServer, error, prompt_of
from hub_server import HubServer
from user_scripts import Script

KEY = "sk-proj-Vu3ry5ecr3tK3y0fM1n3abcdef0123456789"
HEADER = "Zq8-header-secret-77"

SCRIPT = """
    import logging, os, pickle, sys
    from datadreamer_like import DataDreamer
    from datadreamer_like.models import OpenAI
    from datadreamer_like.steps import DataSource, Prompt

    folder, url, pickled = sys.argv[1:]
    logging.getLogger().setLevel(logging.DEBUG)
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG)
    with DataDreamer(folder, log_level=logging.DEBUG):
        headers = {"X-Pass": os.environ["HEADER"]}
        given = OpenAI("given", base_url=url, api_key=os.environ["KEY"], default_headers=headers)
        found = OpenAI("found", base_url=url)
        asked = DataSource("Questions", data={"prompts": [f"question {i}" for i in range(12)]})
        for llm in (given, found):
            answers = Prompt(
                f"Answers {llm.model_name}", inputs={"prompts": asked.output["prompts"]}, args={"llm": llm}
            )
            print(answers.data_card(), answers.card, answers.errors, llm, repr(vars(answers.card)))
            print(answers.fingerprint_parts())
            try:
                answers.publish_to_hf_hub(f"me/{llm.model_name}")
            finally:
                pickle.dump([llm, answers], open(pickled, "ab"))
"""


def test_a_key_is_in_no_file_no_log_no_card_and_nothing_published(tmp_path: Path, hub_server: HubServer) -> None:
    def behave(body: dict[str, object], before: int) -> object:
        if prompt_of(body).endswith("3"):  # as a careless gateway answers
            return error(400, f"Bad request with key {KEY}, sent as Bearer {KEY}")
        if prompt_of(body).endswith("5") and not before:
            return error(500, f"Upstream failed for Authorization: Bearer {KEY}")
        return FlakyServer()._behave(body, before)

    folder = tmp_path / "session"
    with FlakyServer(behave) as server:  # type: ignore[arg-type]
        script = Script(SCRIPT, tmp_path / "script.py", [str(folder), server.url, str(tmp_path / "pickled")])
        keys = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.url, "KEY": KEY, "HEADER": HEADER}
        environment = {**hub_server.environment(tmp_path / "home"), **keys}
        done = script.run(**environment)
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        assert HEADER in {headers.get("x-pass") for headers in server.headers}

    seen = {"what it says": done.stdout, "its log": done.stderr}
    for path in [*folder.rglob("*"), tmp_path / "pickled"]:
        if path.is_file():
            seen[str(path.relative_to(tmp_path))] = path.read_bytes().decode("latin-1")
    for name in ("given", "found"):
        for file, content in hub_server.files("dataset", f"me/{name}").items():
            seen[f"published {name} {file}"] = content.decode("latin-1")
    assert len(seen) > 10
    secrets = {"key": KEY, "header": HEADER, "token": hub_server.token}
    leaks = [
        f"the {name} in {where}: ...{content[max(0, content.index(secret) - 60) : content.index(secret)]!r}"
        for where, content in seen.items()
        for name, secret in secrets.items()
        # A client's own headers are options that it needs again where it is unpickled; its key is found there.
        if secret in content and (where, name) != ("pickled", "header")
    ]
    assert not leaks, "\n".join(leaks)
