"""Files that matter are whole or absent, have the umask's mode, and one process at a time writes them."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from backbones.files import lock_directory, remove_partial_files, sha256, write_whole


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "before")

    def fail(partial):
        partial.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask_whoever_writes(tmp_path, mask):
    def secret(partial):
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(mask)
    try:
        write_whole(tmp_path / "text", "text")
        write_whole(tmp_path / "secret", secret)
    finally:
        os.umask(before)
    for name in ("text", "secret"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


def test_sha256_is_that_of_the_content(tmp_path):
    write_whole(tmp_path / "file", b"abc")
    assert sha256(tmp_path / "file").startswith("ba7816bf8f01cfea")


def test_left_over_partial_files_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".weights.safetensors.123.partial").touch()
    (tmp_path / "weights.safetensors").touch()
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


_HOLD = """
import sys, time
from backbones.files import lock_directory
with lock_directory(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_another_process_out_and_dies_with_its_holder(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(ValueError, match=f"in use by process {holder.pid}"),
        lock_directory(tmp_path),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock_directory(tmp_path):
        pass


def test_forked_workers_do_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    with lock_directory(tmp_path):
        worker = context.Process(target=time.sleep, args=(60,), daemon=True)
        worker.start()
    with lock_directory(tmp_path):
        pass
    worker.kill()


def test_one_process_cannot_lock_a_directory_twice(tmp_path):
    with (
        lock_directory(tmp_path),
        pytest.raises(ValueError, match="this process"),
        lock_directory(tmp_path),
    ):
        pass
