"""Owns the PDF of an invoice: one page or more of plain text, written without a library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_LINES_A_PAGE: Final = 52
_WIDTH, _HEIGHT, _LEADING, _MARGIN = 595, 842, 14, 56


def write(text: Sequence[str]) -> bytes:
    """A PDF 1.4 file that shows `text`, a line each, in Helvetica; letters outside Latin-1 become `?`."""
    pages = [text[start : start + _LINES_A_PAGE] for start in range(0, max(len(text), 1), _LINES_A_PAGE)]
    # Objects 1 to 3 are the catalogue, the page tree and the font; each page then has its own and its contents.
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, lines in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {_WIDTH} {_HEIGHT}] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>".encode()
        )
        stream = _contents(lines)
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    return _assemble(objects)


def _contents(lines: Sequence[str]) -> bytes:
    shown = [f"BT /F1 10 Tf {_LEADING} TL {_MARGIN} {_HEIGHT - _MARGIN} Td".encode()]
    for line in lines:
        escaped = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        shown.append(b"(" + escaped.encode("cp1252", "replace") + b") Tj T*")
    return b"\n".join([*shown, b"ET"])


def _assemble(objects: Sequence[bytes]) -> bytes:
    """The file: header, numbered objects, the table of where each begins, and the trailer."""
    file = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    table += b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(file))
    return file + table + trailer
