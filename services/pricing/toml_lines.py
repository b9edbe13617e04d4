"""Owns where in a TOML file each value stands, which `tomllib` does not tell."""

from __future__ import annotations

import re
from bisect import bisect_right

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_BARE = re.compile(r"[^,\]}#\n]*")
# Strings, longest opening first. One of three quotes may end with five: two are then its own.
_STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"""(?:"{1,2}(?!"))?', re.DOTALL),
    re.compile(r"'''.*?'''(?:'{1,2}(?!'))?", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\])*"'),
    re.compile(r"'[^']*'"),
)


def lines_of(text: str) -> dict[str, int]:
    """The line, from 1, of every value of a file by its path, such as `models[1].rates[0].usd`.

    `text` has been read by `tomllib` before: of what that refuses, this tells no lines that can be relied on.
    """
    return _Scan(text).lines


def line_at(lines: dict[str, int], path: str) -> int | None:
    """The line of a value or, where it is not there, of what it would stand in; None for the file as a whole."""
    while path:
        if path in lines:
            return lines[path]
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return None


class _Scan:
    """One pass over a file."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._newlines = [found.start() for found in re.finditer("\n", text)]
        self._lengths: dict[str, int] = {}  # of the lists of tables so far, by path
        self.lines: dict[str, int] = {}
        table = ""
        while self._skip(_BLANK) and self._at < len(text):
            if text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> str:
        """The path of the table that a header opens."""
        of_list = self._text.startswith("[[", self._at)
        start = self._at
        self._at += 2 if of_list else 1
        self._skip(_BLANK)
        *outer, name = self._key()
        path = ""
        for part in outer:
            path = self._latest(_join(path, part))
        path = _join(path, name)
        if of_list:
            self._lengths[path] = self._lengths.get(path, 0) + 1
            self._note(path, start)
        path = self._latest(path)
        self._note(path, start)
        self._skip(_BLANK)
        self._at += 2 if of_list else 1
        return path

    def _latest(self, path: str) -> str:
        """The path of the last table of a list of tables; any other path as it is."""
        length = self._lengths.get(path)
        return f"{path}[{length - 1}]" if length else path

    def _pair(self, table: str) -> None:
        start = self._at
        path = table
        for part in self._key():
            path = _join(path, part)
            self._note(path, start)
        self._skip(_BLANK)
        self._at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: str) -> None:
        opening = self._text[self._at : self._at + 1]
        if opening in ("[", "{"):
            self._at += 1
            self._inside(path, "]" if opening == "[" else "}")
        elif not any(self._skip(string) for string in _STRINGS):
            self._skip(_BARE)

    def _inside(self, path: str, closing: str) -> None:
        """What stands in an array or an inline table, up to its end."""
        number = 0
        while self._skip(_BLANK) and self._at < len(self._text):
            character = self._text[self._at]
            if character == closing:
                self._at += 1
                return
            if character == ",":
                self._at += 1
            elif closing == "}":
                self._pair(path)
            else:
                self._note(f"{path}[{number}]", self._at)
                self._value(f"{path}[{number}]")
                number += 1

    def _key(self) -> list[str]:
        parts = []
        while match := _KEY_PART.match(self._text, self._at):
            self._at = match.end()
            parts.append(match[0].strip("\"'") if match[0][0] in "\"'" else match[0])
            if not self._skip(_DOT):
                break
        return parts or [""]

    def _note(self, path: str, at: int) -> None:
        self.lines.setdefault(path, bisect_right(self._newlines, at) + 1)

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Go past a pattern, if it stands here."""
        match = pattern.match(self._text, self._at)
        if match is None:
            return False
        self._at = match.end()
        return True


def _join(path: str, part: str) -> str:
    return f"{path}.{part}" if path else part
