"""Cells that several processes train together, started by the scheduler: `make engines`."""

import json
import os
import signal
import time

import pytest

from backbones import files
from tests.small_studies import entry, start, write_study

pytestmark = pytest.mark.engines


NEEDS = {"processes": 2}


def test_a_process_that_is_killed_ends_the_others_and_the_cell_goes_on(tmp_path):
    study = write_study(tmp_path / "study.yaml", entry(12), needs=NEEDS)
    alone = start(study, tmp_path / "alone", "--cell", "0")
    _, err = alone.communicate(timeout=400)
    assert alone.returncode == 0, err
    run = start(study, tmp_path / "out")
    directory = tmp_path / "out" / "first" / "resnet_tiny-seed0"
    try:
        end = time.monotonic() + 200
        while not (directory / files.CHECKPOINT).is_file():
            assert run.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        os.kill(json.loads((directory / files.HEARTBEAT).read_text())["pid"], signal.SIGKILL)
        _, err = run.communicate(timeout=400)
    finally:
        run.kill()
    assert run.returncode == 0, err
    assert "resumed at step" in (directory / files.LOG).read_text()
    record = json.loads((directory / files.RECORD).read_text())
    assert record["device"]["processes"] == 2
    wanted = tmp_path / "alone" / "first" / "resnet_tiny-seed0" / files.WEIGHTS
    assert (directory / files.WEIGHTS).read_bytes() == wanted.read_bytes()


def test_what_is_wrong_with_a_cell_of_several_processes_is_named(tmp_path):
    study = write_study(
        tmp_path / "study.yaml", entry(1, sample=None, data_root="/nonexistent"), needs=NEEDS
    )
    run = start(study, tmp_path / "out")
    _, err = run.communicate(timeout=200)
    assert run.returncode == 1
    assert "first · resnet_tiny-seed0: " in err
    assert "/nonexistent" in err.splitlines()[-1]
