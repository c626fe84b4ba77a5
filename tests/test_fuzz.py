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


def test_a_thousand_broken_files_crash_nothing_and_run_no_code(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "--files", "1000", "--real", "0.1"]
    done = subprocess.run(
        [*command, "--findings", str(tmp_path / "findings")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    counts = done.stdout.strip().splitlines()[-1]
    assert "0 crash, 0 hang" in counts, done.stdout + done.stderr
