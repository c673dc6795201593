"""Reading documents of each format: their title, and the text of each page."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datadreamer_like.errors import DataError

from ..chunking.spans import FRONT_MATTER
from .encodings import binary, plain_suffix

_TITLE = re.compile(r"""^title:[ \t]*(?P<quote>["']?)(?P<title>\S.*?)(?P=quote)[ \t]*\r?$""", re.MULTILINE)
_NOT_CONTENT = ("script", "style", "noscript", "template", "svg", "nav", "iframe")


@dataclass(frozen=True)
class Page:
    """A page, or a document without pages: its text, or the problem that prevents reading it."""

    text: str | None
    title: str = ""
    number: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Reader:
    """How a format is read: a function of the decoded text, or of the file; `modules` are the libraries it needs.

    If it `declares` its encoding, the function also takes the one of files that do not.
    """

    read: Callable[..., list[Page]]
    takes_text: bool = True
    declares: bool = False
    modules: tuple[str, ...] = ()


def read_text(text: str) -> list[Page]:
    """Reads plain text."""
    return [Page(text)]


def read_markdown(text: str) -> list[Page]:
    """Reads Markdown, unchanged; its title is that of its front matter, or the first heading."""
    from markdown_it import MarkdownIt

    front = FRONT_MATTER.match(text)
    named = _TITLE.search(front.group()) if front is not None else None
    if named is not None:
        return [Page(text, named["title"])]
    tokens = MarkdownIt("commonmark").parse(text[front.end() if front is not None else 0 :])
    places = (index for index, token in enumerate(tokens) if token.type == "heading_open")
    place = next(places, None)
    return [Page(text, "" if place is None else tokens[place + 1].content)]


def read_html(file: Path, encoding: str) -> list[Page]:
    """Reads HTML as Markdown; the encoding is that of the document's own declaration, if it has one."""
    from .html_converter import html_as_markdown, parsed

    with binary(file) as stream:
        soup = parsed(stream.read(), encoding)
    for tag in soup.find_all(_NOT_CONTENT):
        tag.decompose()
    heading = soup.find("h1")
    named = soup.title or heading
    title = " ".join(named.get_text(" ").split()) if named else ""
    articles = soup.find_all("article")
    content = soup.find("main") or (articles[0] if len(articles) == 1 else None) or soup.body or soup
    if soup.title and content is soup:  # a fragment; the title is not part of its text
        soup.title.decompose()
    text = re.sub(r"[ \t]+\n", "\n", html_as_markdown(content))
    return [Page(_unicode(re.sub(r"\n{3,}", "\n\n", text).strip()), title)]


def read_pdf(file: Path) -> list[Page]:
    """Reads the text of each page of a PDF; a page that cannot be read has its problem."""
    from pypdf.errors import DependencyError

    try:
        return _pdf_pages(file)
    except DependencyError:
        raise DataError(
            "it is encrypted by AES, which takes another library: `pip install cryptography`, then run the step with "
            "force=True. Or save a copy without encryption."
        ) from None


def _pdf_pages(file: Path) -> list[Page]:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it names no file; what cannot be read is the row's reason
    with binary(file) as stream:
        pdf = PdfReader(stream)
        if pdf.is_encrypted and not pdf.decrypt(""):
            raise DataError("it is encrypted. Save a copy without a password.")
        title = str((pdf.metadata and pdf.metadata.title) or "").strip()
        pages = []
        for number, page in enumerate(pdf.pages, 1):
            try:
                pages.append(Page(_unicode(page.extract_text()), _unicode(title), number))
            except DependencyError:
                raise
            except Exception as error:  # the parser raises many kinds
                problem = f"page {number} cannot be read ({type(error).__name__}: {error})."
                pages.append(Page(None, _unicode(title), number, problem))
    if not pages:
        raise DataError("it has no pages.")
    return pages


def _unicode(text: str) -> str:
    """Returns a text without halves of surrogate pairs, which cannot be stored."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_TEXT, _MARKDOWN = Reader(read_text), Reader(read_markdown, modules=("markdown_it",))
_HTML = Reader(read_html, takes_text=False, declares=True, modules=("bs4", "markdownify"))
READERS = {
    ".md": _MARKDOWN, ".markdown": _MARKDOWN, ".txt": _TEXT, ".text": _TEXT, ".html": _HTML, ".htm": _HTML,
    ".xhtml": _HTML, ".pdf": Reader(read_pdf, takes_text=False, modules=("pypdf",)),
}  # fmt: skip
"""The reader of each format, by suffix; files of other suffixes are read as text."""


def reader_of(file: Path) -> Reader:
    """Returns the reader of a file."""
    return READERS.get(plain_suffix(file), _TEXT)
