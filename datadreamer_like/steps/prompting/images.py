"""Images in prompts: cells of a column as parts of chat messages."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datadreamer_like.errors import DefinitionError, ModelError, NotMade
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.output import OutputDatasetColumnMixin
from datadreamer_like.models.llms.generation import Prompt
from datadreamer_like.models.llms.llm import LLM
from datadreamer_like.storage.digests import file_digest

_STARTS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
}
_ADDRESSES = ("data:", "https://", "http://")


def check_takes_images(llm: LLM, step: str) -> None:
    """Refuses images for an LLM that takes none, before anything is sent."""
    if not llm.takes_images:
        raise DefinitionError(
            f'"{step}": {llm.display_name} takes no images. Leave them out, or use a model of an API that takes them. '
            "A class of your own says so by `takes_images = True`."
        )


def with_images(prompt: Prompt | ModelError | None, images: Any) -> Prompt | ModelError | None:
    """Returns a prompt with images, one cell of a column, before the text of its last message.

    All contents become lists of parts, so that prompts with and without images fit one column. A cell is an image or a
    list of images, each a PIL image, the bytes or the path of a file, a dictionary with "bytes" or "path" as `datasets`
    has them, or an address ("https://..." or "data:..."). An image that cannot be read is the error of its row.
    """
    if prompt is None or isinstance(prompt, ModelError):
        return prompt
    chat: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages: list[dict[str, Any]] = [dict(message) for message in chat]
    for message in messages:
        if isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    given = [] if images is None else images if isinstance(images, list | tuple) else [images]
    try:
        parts = [{"type": "image_url", "image_url": {"url": image_url(image)}} for image in given]
    except (OSError, ValueError, TypeError) as error:
        return ModelError(f"An image cannot be read: {error}.")
    messages[-1]["content"] = [*parts, *messages[-1]["content"]]
    return messages


def fingerprint_of_files(columns: Iterable[OutputDatasetColumnMixin]) -> dict[str, str]:
    """Returns, as a part of a step's fingerprint, that of the content of all files that columns of images name.

    It is empty if they name none, or have not been made yet in a plan. A file that cannot be read is one without
    content, as it fails its row.
    """
    names: set[str] = set()
    with suppress(NotMade):
        for column in columns:
            for batch in column.rows.read():
                names |= _paths(batch.column(0))
    digests = {}
    for name in sorted(names):
        try:
            digests[name] = file_digest(name)
        except (OSError, ValueError):
            digests[name] = ""
    return {"content of images": fingerprint(digests)} if digests else {}


def _paths(cells: pa.Array) -> set[str]:
    kind = cells.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _paths(cells.flatten())
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        if kind.get_field_index("bytes") >= 0:
            cells = cells.filter(pc.is_null(pc.struct_field(cells, "bytes")))
        return _paths(pc.struct_field(cells, "path"))
    if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        return set()
    return {cell for cell in cells.unique().to_pylist() if cell and not cell.startswith(_ADDRESSES)}


def image_url(image: Any) -> str:
    """Returns an image as an address; a file's content and a PIL image as a `data:` URL.

    Raises:
        OSError: The file cannot be read.
        ValueError, TypeError: It is not an image of PNG, JPEG, GIF or WebP.
    """
    if isinstance(image, str) and image.startswith(_ADDRESSES):
        return image
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str | Path):
        image = Path(image).read_bytes()
    if hasattr(image, "save"):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        image = buffer.getvalue()
    if not isinstance(image, bytes | bytearray | memoryview):
        raise TypeError(f"{type(image).__name__} is not an image, its bytes or a path")
    content = bytes(image)
    return f"data:{_media_type(content)};base64,{base64.b64encode(content).decode()}"


def _media_type(content: bytes) -> str:
    found = next((kind for start, kind in _STARTS.items() if content.startswith(start)), None)
    if found is None and content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        found = "image/webp"
    if found is None:
        raise ValueError("the bytes are not a PNG, JPEG, GIF or WebP image")
    return found


def cells_together(columns: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Returns the images of each row of several columns as one list."""
    rows = []
    for cells in zip(*columns, strict=True):
        found = [list(cell) if isinstance(cell, list | tuple) else [cell] for cell in cells if cell is not None]
        rows.append([image for cell in found for image in cell])
    return rows
