"""The README files: their tables are the code's, their links lead somewhere, their commands exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tools.cli.settings_tables import PAGES, with_table

ROOT = Path(__file__).parent.parent
README = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*/README.md")) + sorted(
    ROOT.glob("tools/*/README.md")
)  # fmt: skip


@pytest.mark.parametrize("task", PAGES)
def test_the_table_of_settings_is_that_of_the_classes(task):
    page = (ROOT / PAGES[task]).read_text(encoding="utf-8")
    assert with_table(page, task) == page, "run python -m tools.cli.settings_tables"


@pytest.mark.parametrize("path", README, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(path):
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [
        link
        for link in links
        if not link.startswith(("http://", "https://")) and not (path.parent / link).exists()
    ]
    assert not missing


def test_a_newcomer_reads_at_most_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_command_of_the_readmes_exists_with_its_options():
    wanted: dict[tuple[str, ...], set[str]] = {}
    for path in README:
        shown = "".join(re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
        for line in re.findall(r"^sebench (.*)$", shown.replace("\\\n", " "), re.MULTILINE):
            for part in line.split(";"):
                words = shlex.split(part.split("#")[0].removeprefix(" sebench").strip(" \\"))
                if not words or words[0].startswith("-"):
                    continue
                command = words[: 2 if words[0] in ("train", "evaluate", "weights", "data") else 1]
                options = {word for word in words if word.startswith("--")}
                wanted.setdefault(tuple(command), set()).update(options)
    code = (
        "import sys, json; from typer.main import get_command; from tools.cli import app\n"
        "def walk(command, name):\n"
        "    yield name, [o for p in command.params for o in p.opts + p.secondary_opts]\n"
        "    for key, inner in getattr(command, 'commands', {}).items():\n"
        "        yield from walk(inner, [*name, key])\n"
        "print(json.dumps(list(walk(get_command(app), []))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    known = {tuple(name): set(options) for name, options in json.loads(done.stdout)}
    for command, options in wanted.items():
        name = command if command in known else command[:1]
        assert name in known, command
        assert options <= known[name] | {"--help", "--version"}, (command, options - known[name])
