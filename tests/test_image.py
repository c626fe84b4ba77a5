"""The recipes of images, for Docker and Apptainer: what they take, and the steps that `make setup` has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _read(name):
    return (ROOT / name).read_text(encoding="utf-8")


DOCKERFILE = re.sub(r"^#.*\n", "", _read("Dockerfile").replace("\\\n", " "), flags=re.MULTILINE)


def _instructions(kind):
    return re.findall(rf"^{kind}\s+(.*)$", DOCKERFILE, flags=re.MULTILINE)


def _copied():
    return [path for line in _instructions("COPY") for path in line.split()[:-1]]


def _steps():
    return [step.strip() for line in _instructions("RUN") for step in line.split("&&")]


def _section(name):
    found = re.search(rf"^%{name}\n((?:    .*\n|\n)+)", _read("apptainer.def"), re.MULTILINE)
    return [line.strip() for line in found[1].splitlines() if line.strip()]


def test_an_image_takes_every_package_and_nothing_that_is_not_there():
    for path in _copied():
        assert (ROOT / path).exists(), path
    packages = re.search(r"^include = \[(.*)\]$", _read("pyproject.toml"), re.MULTILINE)[1]
    assert set(re.findall(r'"(\w+)\*"', packages)) <= set(_copied())


def test_environments_data_and_runs_stay_out_of_an_image():
    first, *others = [line for line in _read(".dockerignore").splitlines() if line[0] != "#"]
    assert first == "*"
    assert [line[1:] for line in others if line[0] == "!"] == _copied()
    assert "**/__pycache__" in others


def test_docker_and_apptainer_run_the_same_steps_from_the_same_image():
    assert f"From: {_instructions('FROM')[0]}\n" in _read("apptainer.def")
    post = [line for line in _section("post") if not line.startswith(("set -e", "export "))]
    assert post == ["cd /opt/source" if step == "cd" else step for step in _expected_post()]
    arguments = dict(line.split("=", 1) for line in _section("arguments"))
    assert f"EXTRAS={arguments['EXTRAS']}" in _instructions("ARG")
    assert [line.split()[0] for line in _section("files")] == _copied()


def _expected_post():
    """The Dockerfile's steps; Apptainer changes folders itself, and mounts those of the user."""
    steps = [step for step in _steps() if not step.startswith("mkdir")]
    place = next(number for number, step in enumerate(steps) if "venv" in step)
    return [*steps[:place], "cd", *steps[place:]]


def test_an_image_is_set_up_as_make_does_it():
    python = r"(?:\$\(BIN\)|/opt/sebench/bin)/python -m "
    make = re.findall(rf"^\t{python}(.*)$", _read("Makefile").partition("demo:")[0], re.MULTILINE)
    image = [found[1] for step in _steps() if (found := re.match(python + "(.*)", step))]
    assert [_essence(step) for step in image] == [_essence(step) for step in make]
    extras = re.search(r"EXTRAS=(\S+)", DOCKERFILE)[1].split(",")
    assert set(extras) <= set(re.findall(r"^(\w+) = \[", _read("pyproject.toml"), re.MULTILINE))


def _essence(step):
    """A step of set-up without what is the machine's: quietness, caches, what is installed."""
    return [
        word for word in step.split() if not re.match(r"--quiet|--disable|--no-c|--e|['\"]", word)
    ]


def test_the_python_of_an_image_is_one_that_the_constraints_are_for():
    version = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", _instructions("FROM")[0])[1]
    assert version in _read("constraints.txt").partition("\n")[0]


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_without_a_command_an_image_runs_the_demo(name):
    text = _read(name)
    if name == "Dockerfile":
        assert text.rstrip().endswith('ENTRYPOINT ["sebench"]\nCMD ["demo"]')
    else:
        assert _section("runscript") == [
            "if [ $# -eq 0 ]; then set -- demo; fi",
            'exec sebench "$@"',
        ]


def test_a_record_made_in_an_image_names_the_commit_it_was_built_from(monkeypatch, tmp_path):
    from tools.experiments import record

    assert "ENV SEBENCH_COMMIT=$COMMIT" in _read("Dockerfile")
    installed = tmp_path / "site-packages" / "tools" / "experiments"
    installed.mkdir(parents=True)
    monkeypatch.setattr(record, "__file__", str(installed / "record.py"))
    monkeypatch.setenv("SEBENCH_COMMIT", "c0ffee")
    assert record.read_git() == record.Git("c0ffee", None)
