"""Images in prompts: what each API receives, and what is refused before anything is sent."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anthropic_server import AnthropicServer
from engines import Echo
from flaky_server import FlakyServer
from PIL import Image

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph import DataDreamer
from datadreamer_like.models import AI21, LLM, Anthropic, DeepSeek, OpenAI, ParallelLLM
from datadreamer_like.steps import DataSource, Prompt, TemplatePrompt


def picture(kind: str = "PNG", shade: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 3, 3), shade, np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


def opened(url: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def ask(llm: LLM, images: list[Any], prompts: list[Any] | None = None) -> Prompt:
    rows = DataSource("Rows", data={"text": prompts or ["What is it?"] * len(images), "image": images}).output
    return Prompt("Ask", inputs={"prompts": rows["text"], "images": rows["image"]}, args={"llm": llm})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(picture("JPEG"))
    return path


@pytest.mark.parametrize("kind", ["a PIL image", "bytes", "a path", "an address", "two images"])
def test_openai_receives_images_before_the_text(session: DataDreamer, file: Path, kind: str) -> None:
    image: Any = {
        "a PIL image": Image.open(io.BytesIO(picture())),
        "bytes": picture("GIF"),
        "a path": str(file),
        "an address": "https://example.org/cat.png",
        "two images": [picture(), picture("WEBP")],
    }[kind]
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, api_key="x")
        made = ask(llm, [image])
        ((message,),) = (body["messages"] for body in server.requests)
        assert ask(llm, [image]).fingerprint == made.fingerprint
    assert message["role"] == "user"
    *parts, text = message["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert [part["type"] for part in parts] == ["image_url"] * (2 if kind == "two images" else 1)
    url = parts[0]["image_url"]["url"]
    if kind == "an address":
        assert url == image
        return
    assert url.startswith({"bytes": "data:image/gif", "a path": "data:image/jpeg"}.get(kind, "data:image/png"))
    assert opened(url).shape[:2] == (2, 3)
    if kind == "a PIL image":
        assert (opened(url) == 7).all()


def test_anthropic_receives_images_in_its_own_form(session: DataDreamer) -> None:
    data = base64.b64encode(picture()).decode()
    with AnthropicServer() as server:
        llm = Anthropic("claude-haiku-4-5", base_url=server.url, api_key="x")
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]
        ask(llm, [[f"data:image/png;base64,{data}", "https://example.org/cat.png"]], [chat])
        (body,) = server.requests
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}},
                {"type": "text", "text": "What is it?"},
            ],
        }
    ]
    assert body["system"] == [{"type": "text", "text": "Be brief."}]


def test_rows_without_an_image_and_with_a_broken_one(session: DataDreamer) -> None:
    with FlakyServer() as server:
        made = ask(OpenAI("m", base_url=server.url, api_key="x"), [picture(), None, b"no image"])
        sent = [body["messages"][0]["content"] for body in server.requests]
    assert sorted(len(parts) for parts in sent) == [1, 2]
    assert [text is None for text in made.output["generations"]] == [False, False, True]
    assert list(made.errors) == [2]
    assert "not a PNG, JPEG, GIF or WebP" in made.errors[2]


def test_a_template_shows_the_images_of_several_columns(session: DataDreamer) -> None:
    data = {"name": ["Tom"], "front": [Image.open(io.BytesIO(picture()))], "back": [picture(shade=9)]}
    rows = DataSource("Rows", data=data).output
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, api_key="x")
        args = {"llm": llm, "template": "Is this {{ name }}?", "images": ["front", "back"]}
        made = TemplatePrompt("Ask", inputs={name: rows[name] for name in data}, args=args)
        parts = server.requests[0]["messages"][0]["content"]
    assert [opened(part["image_url"]["url"])[0, 0, 0] for part in parts[:2]] == [7, 9]
    assert parts[2]["text"] == "Is this Tom?"
    assert next(iter(made.output["front"])).size == (3, 2)
    with pytest.raises(DefinitionError, match='images names "fornt".*Did you mean "front"'):
        TemplatePrompt("Again", inputs={"front": rows["front"]}, args={**args, "template": "x", "images": ["fornt"]})


def test_a_model_that_takes_no_images_is_refused_before_anything_is_sent(session: DataDreamer) -> None:
    llm = Echo()
    with pytest.raises(DefinitionError, match=r'"Ask": .* takes no images'):
        ask(llm, [picture()])
    with FlakyServer() as server:
        both = ParallelLLM(OpenAI("m", base_url=server.url, api_key="x"), llm)
        with pytest.raises(DefinitionError, match="takes no images"):
            ask(both, [picture()])
        for kind in (AI21, DeepSeek):
            with pytest.raises(DefinitionError, match=f"{kind.__name__}.* takes no images"):
                ask(kind("m", base_url=server.url, api_key="x"), [picture()])
        assert server.requests == []
    assert llm.asked == []


@pytest.mark.parametrize("cell", ["path", "list", "dictionary"])
def test_a_file_with_other_content_is_asked_about_again_and_only_it(tmp_path: Path, cell: str) -> None:
    files = [tmp_path / name for name in ("one.png", "two.png")]
    for file in files:
        file.write_bytes(picture())
    paths = [*map(str, files), str(tmp_path / "absent.png")]
    image: Any = {"path": str, "list": lambda path: [path], "dictionary": lambda path: {"path": path, "bytes": None}}
    cells = [image[cell](path) for path in paths]

    def run(server: FlakyServer) -> tuple[str, list[bool]]:
        llm = OpenAI("m", base_url=server.url, api_key="x")
        with DataDreamer(tmp_path / "out", verbose=False):
            made = ask(llm, cells)
            rows = DataSource("Of a template", data={"name": ["a", "b", "c"], "image": cells}).output
            args = {"llm": llm, "template": "Is this {{ name }}?", "images": ["image"]}
            inputs = {"name": rows["name"], "image": rows["image"]}
            other = TemplatePrompt("Filled", inputs=inputs, args=args)
            assert [text is None for text in other.output["generations"]] == [
                text is None for text in made.output["generations"]
            ]
            return made.fingerprint, [text is None for text in made.output["generations"]]

    with FlakyServer() as server:
        first = run(server)
        sent = len(server.requests)
        assert (sent, first[1]) == (3, [False, False, True])
        assert run(server) == first
        files[0].touch()
        assert run(server) == first
        assert len(server.requests) == sent
        files[1].write_bytes(picture(shade=9))
        assert run(server)[0] != first[0]
        assert len(server.requests) == sent + 2
        Path(paths[2]).write_bytes(picture(shade=8))
        assert run(server)[1] == [False, False, False]
