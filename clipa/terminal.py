"""The one door by which text reaches a terminal or a log: control characters are shown, never sent.

Names of runs, recipes, files, sets and errors come from anybody who can write to a folder that clipa reads. An escape
sequence in one of them could color or hide a line, retitle the window, or write to the clipboard (OSC 52). So
everything that clipa prints passes here (or through `clipa.cli.console`, which uses this module), and
`tests/rules/test_printing.py` keeps it that way.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TextIO

import msgspec

_LINES = "\n\t"
_JOINERS = "\u200c\u200d"
"""Zero-width joiners: emoji and several scripts need them, and they move nothing."""
_SHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that are escaped: controls (C0, DEL, C1), format characters (bidi overrides and isolates), lone
surrogates (bytes that are no UTF-8), line and paragraph separators."""
_LONGEST = 1 << 20
"""Bytes of a line without an end that are held back."""
_COLOR = re.compile(
    r"\x1b\[(?:(?:[0-479]|2[1-579]|[34][0-79]|9[0-7]|10[0-7]|[34]8[;:]5[;:]\d{1,3}|[34]8[;:]2(?:[;:]\d{1,3}){3})?"
    r"(?:;|(?=m)))*m"
)
"""SGR sequences of color and weight (ECMA-48 8.3.117), without conceal (8) and blink (5, 6)."""
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colors, cursor, erase
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"  # other escapes
)


def printable(text: str) -> str:
    r"""Return the text with every control character as an escape (`\x1b`, `\u202e`); line feeds and tabs stay."""
    return _escaped(text, _LINES + _JOINERS)


def one_line(text: str) -> str:
    r"""Return the text as `printable` does, with line feeds and tabs as escapes too: a name cannot forge a line."""
    return _escaped(text, _JOINERS)


def _escaped(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c in kept or unicodedata.category(c) not in _SHOWN else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as os.fsdecode has it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def log_line(text: str) -> str:
    """Return a line of a log with its colors; other sequences are dropped and other controls shown."""
    parts, at, colored = [], 0, False
    for found in _SEQUENCE.finditer(text):
        parts.append(one_line(text[at : found.start()]))
        at = found.end()
        if _COLOR.fullmatch(found[0]):
            parts.append(found[0])
            colored = True
    parts.append(one_line(text[at:].rstrip("\n")).replace("\\x09", "\t"))
    return "".join(parts) + ("\x1b[0m" if colored else "")


class LogText:
    """The text of a log that grows, as `log_line` shows it. The part of a line waits for the rest."""

    def __init__(self) -> None:
        self._part = b""

    def add(self, chunk: bytes) -> str:
        """Return the lines that this chunk completes."""
        *lines, self._part = re.split(rb"\r?\n|\r(?=.)", self._part + chunk, flags=re.DOTALL)
        long = self.rest() if len(self._part) > _LONGEST else ""
        return "".join(log_line(line.decode(errors="replace")) + "\n" for line in lines) + long

    def rest(self) -> str:
        """Return the part of a line that waits, because nothing more comes for now."""
        part, self._part = self._part, b""
        return log_line(part.decode(errors="replace"))


def json_text(value: object, indent: int = 0) -> str:
    r"""Return a value as JSON whose every control character is a `\u` escape: valid, and safe on a terminal."""
    try:
        raw = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # a lone surrogate: JSON on the wire is UTF-8
        raw = msgspec.json.encode(_encodable(msgspec.to_builtins(value))).decode()
    raw = raw if raw.isprintable() else "".join(map(_json_escape, raw))
    return msgspec.json.format(raw, indent=indent) if indent else raw


def _json_escape(character: str, always: bool = False) -> str:
    if not always and (character == "\n" or unicodedata.category(character) not in _SHOWN):
        return character
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2))


def _encodable(value: object) -> object:
    if isinstance(value, str):
        return "".join(_escape(c) if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value


def say(*values: object, err: bool = False, end: str = "\n") -> None:
    """Print values as `print` does, as printable text, to stdout or with `err` to stderr, and flush."""
    send(printable(" ".join(map(str, values))) + end, err=err)


def say_json(value: object, indent: int = 0) -> None:
    """Print a value as JSON, valid and the same value whatever the encoding of stdout."""
    text = json_text(value, indent)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = "".join(c if c.isascii() else _json_escape(c, always=True) for c in text)
    send(text + "\n")


def say_document(schema: str, /, **fields: object) -> None:
    """Print a JSON document of a command: `schema` is its name and version, as docs/json.md lists them."""
    say_json({"schema": schema, **fields}, indent=2)


def send(text: str, err: bool = False) -> None:
    """Write text that is safe already. What the stream's encoding does not have is escaped."""
    stream: TextIO | None = sys.stderr if err else sys.stdout
    if stream is None:  # it was closed before Python began
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
