"""The tables of settings in the tasks' README.md files: `python -m tools.cli.settings_tables` writes them anew."""

from __future__ import annotations

from pathlib import Path

import tabulate

from backbones.config import describe_settings
from backbones.files import write_whole
from tools.experiments.tasks import find_task, settings_class

PAGES = {"classification": "classification/README.md", "detection": "detection/README.md"}
_BEGIN, _END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def settings_table(task: str) -> str:
    """The settings of a task as a Markdown table; a star marks what cannot change a result."""
    rows = [
        (
            f"`{info.name}`" + ("" if info.identity else " \\*"),
            info.type.replace("|", "or"),
            "" if info.default in (None, [], {}) else f"`{info.default}`",
            info.unit or "",
            info.meaning,
        )
        for info in describe_settings(settings_class(find_task(task)))
    ]
    headers = ("setting", "type", "default", "unit", "meaning")
    return tabulate.tabulate(rows, headers, "github", disable_numparse=True) + "\n"


def with_table(page: str, task: str) -> str:
    """A page with the table between its marks as it has to be.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page of {task} lacks {_BEGIN.strip()} or {_END.strip()}")
    return before + begin + settings_table(task) + end + after


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    for task, name in PAGES.items():
        write_whole(root / name, with_table((root / name).read_text(encoding="utf-8"), task))
