"""Text of records made harmless: on reading for every format, and for each format's own syntax.

HTML is escaped by Jinja2 itself.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import msgspec
from pydantic import TypeAdapter

from backbones.config import printable
from tools.experiments.measured import Measured
from tools.experiments.record import PLACE, Record, record_from, to_plain

_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$])")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "±": r"$\pm$",
}  # fmt: skip


def harmless(record: Record) -> Record:
    """The record with all its text printable; the files it names are left as they are."""
    # Most records hold plain text throughout, which their JSON shows at once.
    text = msgspec.json.encode(replace(record, directory=None, annotations=None))
    if text.isascii() and b"\\" not in text and b"\x7f" not in text:
        return record
    content = to_plain(record)
    kept = {key: content[key] for key in ("files", "weights")}
    place = {key: getattr(record, key) for key in PLACE}
    return replace(
        record_from({**_printable(content), **kept}), **place | {"name": printable(record.name)}
    )


def harmless_costs(measured: Measured) -> Measured:
    """The same for costs that were measured side by side."""
    return TypeAdapter(Measured).validate_python(_printable(asdict(measured)))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(entry) for key, entry in value.items()}
    return [_printable(entry) for entry in value] if isinstance(value, list) else value


def escape_markdown(text: object) -> str:
    """Text that Markdown shows as it is, in a table cell too; no HTML, no link, no emphasis."""
    entities = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", entities)


def escape_latex(text: object) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_LATEX.get(character, character) for character in str(text))


def escape_csv(value: object) -> object:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers."""
    if not isinstance(value, str):
        return "" if value is None else value
    risky = value[:1] in tuple("=+-@\t\r\n") or value.lstrip()[:1] in tuple("=+-@")
    return f"'{value}" if risky else value
