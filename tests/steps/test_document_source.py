"""Folders of documents: text, titles and pages of each format, and documents that cannot be read."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject, NumberObject

from datadreamer_like.errors import ArgumentTypeError, DataError
from datadreamer_like.graph import DataDreamer
from datadreamer_like.steps import DocumentDataSource

HTML = """<!doctype html><html><head><meta charset="iso-8859-1"><title> The  title </title><style>p {}</style></head>
<body><nav>menu</nav><main><h2>Caf\xe9</h2><p>One <a href="/x">link</a> &amp; more_than_that.</p>
<script>no()</script><ul><li>a</li><li>b</li></ul></main><footer>never</footer></body></html>"""


def write_pdf(file: Path, pages: list[str], password: str | None = None, title: str | None = None) -> None:
    writer = PdfWriter()
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1")})
    font[NameObject("/BaseFont")] = NameObject("/Helvetica")
    for text in pages:
        page = writer.add_blank_page(300, 300)
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode() if text else b"")
        page[NameObject("/Contents")] = writer._add_object(content)
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    if title is not None:
        writer.add_metadata({"/Title": title})
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.txt").write_text("plain\r\ntext", newline="")
    (folder / "b.md").write_text("intro\n\nGuide\n=====\n\n```\n# code\n```\n")
    (folder / "deep" / "c.html").write_bytes(HTML.encode("latin-1"))
    write_pdf(folder / "deep" / "er" / "d.pdf", ["first page", "second page"], title="Report")
    (folder / "ignored.csv").write_text("a\n1\n")
    return folder


def test_each_format_gives_its_text_title_and_pages(session: DataDreamer, folder: Path) -> None:
    rows = list(DocumentDataSource("Documents", data_folder=folder).output)
    assert [(row["path"], row["title"], row["page"]) for row in rows] == [
        ("a.txt", "a", None),
        ("b.md", "Guide", None),
        ("deep/c.html", "The title", None),
        ("deep/er/d.pdf", "Report", 1),
        ("deep/er/d.pdf", "Report", 2),
    ]
    texts = [row["text"] for row in rows]
    assert texts[:2] == ["plain\ntext", (folder / "b.md").read_text()]
    assert texts[2] == "## Café\n\nOne link & more_than_that.\n\n* a\n* b"
    assert texts[3:] == ["first page", "second page"]


@pytest.mark.parametrize(
    ("start", "encoding", "text"),
    [
        ('<meta charset="iso-8859-1">', "cp1252", "“Café” – Zoë"),
        ('<meta charset="Shift_JIS">', "cp932", "日本語①"),
        ('<?xml version="1.0" encoding="koi8-r"?><html>', "koi8-r", "Это текст"),
        ('<meta charset="utf-16">', "utf-8", "Zoë"),
        ("", "utf-8", "Zoë"),
        ("\ufeff", "utf-16-le", "Zoë"),
    ],
)
def test_html_has_the_encoding_that_it_declares(
    session: DataDreamer, tmp_path: Path, start: str, encoding: str, text: str
) -> None:
    (tmp_path / "a.html").write_bytes(f"{start}<body><p>{text}</p></body>".encode(encoding))
    assert list(DocumentDataSource("Documents", data_folder=tmp_path).output["text"]) == [text]


def test_the_encoding_of_html_is_not_guessed(session: DataDreamer, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes("<p>Zoë très naïve</p>".encode("cp1252"))
    (tmp_path / "b.html").write_bytes('<meta charset="utf-8"><p>Zoë</p>'.encode("cp1252"))
    documents = DocumentDataSource("Documents", data_folder=tmp_path)
    assert list(documents.output["text"]) == [None, None]
    assert "declares no encoding, and is not utf-8. Set its own" in documents.errors[0]
    assert "b.html: it is not utf-8, which it declares" in documents.errors[1]
    named = DocumentDataSource("Named", data_folder=tmp_path, data_files="a.html", encoding="cp1252")
    assert list(named.output["text"]) == ["Zoë très naïve"]


@pytest.mark.parametrize(
    ("front", "title"),
    [("tags: [a]", "Guide"), ('title: "My: notes"\ntags: [a]', "My: notes"), ("title:\nx: 'y'", "Guide")],
)
def test_front_matter_is_no_heading_and_gives_the_title(
    session: DataDreamer, tmp_path: Path, front: str, title: str
) -> None:
    (tmp_path / "a.md").write_text(f"---\n{front}\n---\n# Guide\n")
    (row,) = DocumentDataSource("Documents", data_folder=tmp_path).output
    assert row["title"] == title
    assert row["text"] == (tmp_path / "a.md").read_text()


HEAD = "<tr><th>a</th><th>b</th></tr>"


@pytest.mark.parametrize(
    ("rows", "cells"),
    [
        (f"{HEAD}<tr><td>x|y<br>z</td><td><code>ls | wc</code></td></tr>", ["a", "b", "x|y<br>z", "`ls | wc`"]),
        (f"{HEAD}<tr><td><p>one\nline</p><p>two</p></td><td>1</td></tr>", ["a", "b", "one line<br>two", "1"]),
        (f"{HEAD}<tr><td><h2>big</h2>text</td><td><pre>l\n|</pre></td></tr>", ["a", "b", "big<br>text", "`l`<br>`|`"]),
        (f"{HEAD}<tr><td><ul><li>p</li><li>q</li></ul></td><td>1</td></tr>", ["a", "b", "* p<br>* q", "1"]),
        (f"{HEAD}<tr><td rowspan=2>x</td><td>1</td></tr><tr><td>2</td></tr>", ["a", "b", "x", "1", "x", "2"]),
        ("<tr><th colspan=2>a</th></tr><tr><td>1</td><td>2</td></tr>", ["a", "", "1", "2"]),
        ("<tr><td colspan=99999>a</td></tr><tr><td>1</td><td>2</td></tr>", ["", "", "a", "", "1", "2"]),
        (f"<thead>{HEAD}</thead><tfoot><tr><td>1</td></tr></tfoot>", ["a", "b", "1", ""]),
        (f"<tr><td><table>{HEAD}<tr><td>1</td><td>2</td></tr></table></td><td>c</td></tr>", [*"ab12c"]),
        ("<tr><td><h1>A</h1><p>B</p></td></tr>", ["A", "B"]),
        ("<tr></tr>", []),
    ],
)
def test_cells_of_html_tables_are_cells_of_markdown(
    session: DataDreamer, tmp_path: Path, rows: str, cells: list[str]
) -> None:
    (tmp_path / "a.html").write_text(f"<body><table>\n{rows}\n</table></body>")
    (text,) = DocumentDataSource("Documents", data_folder=tmp_path).output["text"]
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert [token.content for token in tokens if token.type == "inline"] == cells


def test_pages_can_be_joined_and_files_chosen(session: DataDreamer, folder: Path) -> None:
    (row,) = DocumentDataSource("Joined", data_folder=folder, data_files="**/*.pdf", pages=False).output
    assert row == {"path": "deep/er/d.pdf", "title": "Report", "text": "first page\n\nsecond page", "page": None}
    (row,) = DocumentDataSource("One", data_files=folder / "deep" / "c.html").output
    assert row["path"] == "c.html"


def test_a_document_that_cannot_be_read_fails_its_row_with_the_reason(
    session: DataDreamer, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "e-damaged.pdf").write_bytes(b"%PDF-1.7\nthis is not one")
    write_pdf(folder / "f-locked.pdf", ["hidden"], password="pw")
    (folder / "g.txt").write_bytes(b"caf\xe9")
    (folder / "h.txt").write_text("fine")
    step = DocumentDataSource("Documents", data_folder=folder)
    rows = list(step.output)
    failed = {rows[index]["path"]: reason for index, reason in step.errors.items()}
    assert set(failed) == {"e-damaged.pdf", "f-locked.pdf", "g.txt"}
    assert all(rows[index]["text"] is None for index in step.errors)
    assert "encrypted" in failed["f-locked.pdf"]
    assert failed["g.txt"].startswith("g.txt: line 1: byte 0xe9 (byte 3 of the file) is not utf-8")
    assert str(folder) not in "".join(failed.values())
    assert rows[-1]["text"] == "fine"
    assert step.card.failed_rows == 3
    assert {record.name for record in caplog.records} == {"datadreamer_like"}


@pytest.mark.skipif(find_spec("cryptography") is not None, reason="it is then read")
def test_a_pdf_that_opens_without_a_password_but_takes_another_library_says_which(
    session: DataDreamer, tmp_path: Path
) -> None:
    write_pdf(tmp_path / "a.pdf", ["text"], password="")
    writer = PdfWriter(tmp_path / "a.pdf")
    writer.encrypt("", algorithm="RC4-128")
    kind = DictionaryObject({NameObject("/CFM"): NameObject("/AESV2"), NameObject("/Length"): NumberObject(16)})
    entry = writer._encrypt_entry
    entry[NameObject("/CF")] = DictionaryObject({NameObject("/StdCF"): kind})
    entry[NameObject("/StmF")] = entry[NameObject("/StrF")] = NameObject("/StdCF")
    entry[NameObject("/V")] = entry[NameObject("/R")] = NumberObject(4)
    writer.write(tmp_path / "a.pdf")
    step = DocumentDataSource("Documents", data_folder=tmp_path)
    assert list(step.output["text"]) == [None]
    assert "pip install cryptography" in step.errors[0]


def test_pages_without_text_are_empty_and_counted(
    session: DataDreamer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pdf(tmp_path / "scan.pdf", ["", "seen", ""])
    assert list(DocumentDataSource("Scan", data_folder=tmp_path).output["text"]) == ["", "seen", ""]
    assert "Scan: 2 documents or pages have no text" in caplog.text


def test_a_preview_reads_no_more_documents_than_it_has_rows(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_bytes(b"\xff" if number > 3 else b"fine")
    with DataDreamer(":memory:", preview=3, verbose=False):
        step = DocumentDataSource("Documents", data_folder=tmp_path)
        assert list(step.output["text"]) == ["fine"] * 3
        assert step.errors == {}


def test_content_and_relative_paths_decide(tmp_path: Path, folder: Path) -> None:
    with DataDreamer(":memory:", verbose=False):
        first = DocumentDataSource("Documents", data_folder=folder).fingerprint
        moved = folder.rename(tmp_path / "moved")
        assert DocumentDataSource("Documents", data_folder=moved).fingerprint == first
        (moved / "a.txt").rename(moved / "aa.txt")
        assert DocumentDataSource("Documents", data_folder=moved).fingerprint != first


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"pages": "no"}, ArgumentTypeError, "pages is 'no'"),
        ({"encoding": "rot13"}, ValueError, 'no encoding "rot13"'),
        ({"data_files": "*.pdf"}, DataError, "no file matches"),
    ],
)
def test_bad_options_are_named(
    session: DataDreamer, folder: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        DocumentDataSource("Documents", data_folder=folder, **options)


def test_a_link_to_nowhere_is_left_out_with_a_warning(
    session: DataDreamer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("A text.")
    (tmp_path / "b.pdf").symlink_to(tmp_path / "nowhere")
    assert list(DocumentDataSource("Documents", tmp_path).output["path"]) == ["a.txt"]
    assert f"left out {tmp_path / 'b.pdf'}, whose link leads nowhere (1 such)" in caplog.text


def test_a_folder_without_documents_is_named(session: DataDreamer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no file that ends in \.md"):
        DocumentDataSource("Documents", data_folder=tmp_path)
