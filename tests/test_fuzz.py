"""Broken files of every kind: refused by a clear word, or read rightly; `make fuzz` tries twenty times as many."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import mutations

ROOT = Path(__file__).parent.parent


def test_forged_pickles_would_run_code_if_the_standard_reader_read_them(tmp_path, monkeypatch):
    """Or the count of code that ran would say nothing."""
    plain = pickle.dumps({"weight": [1, 2]}, protocol=2)
    ran = 0
    for seed in range(300):
        broken = mutations.mutate_pickle(plain, Random(seed))
        if b"system" in broken and b"torch" not in broken and len(broken) < 300:
            file = tmp_path / "file"
            file.write_bytes(broken)
            code = f"import pickle; pickle.load(open({str(file)!r}, 'rb'))"
            subprocess.run([sys.executable, "-c", code], capture_output=True)
            ran += Path(mutations.CANARY).exists()
            Path(mutations.CANARY).unlink(missing_ok=True)
        if ran == 2:
            return
    pytest.fail("none of them did")


def test_a_thousand_broken_files_are_refused_by_a_clear_word_or_read_rightly(tmp_path):
    """Of every kind, in worker processes; what a check accepts is trained on to its end, for some."""
    command = [sys.executable, "-m", "tests.fuzz", "--files", "1000", "--quick", "--real", "0.5"]
    done = subprocess.run(
        [*command, "--findings", str(tmp_path / "findings")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_killed_runs_go_on_to_the_bytes_of_runs_that_nobody_touched():
    command = [sys.executable, "-m", "tests.fuzz.endurance", "--trials", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
