"""Checkpoints are what was written, or are refused; what stood there stays until they are whole."""

import multiprocessing
import resource
import signal

import pytest
import torch

from backbones.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"step": 3, "network": {"weight": torch.arange(4.0)}}, path)
    return path


def test_a_checkpoint_is_read_as_it_was_written_by_us_and_by_torch(path):
    for state in (
        load_checkpoint(path, "a task", {"step": int}),
        torch.load(path, weights_only=True),
    ):
        assert state["step"] == 3
        assert torch.equal(state["network"]["weight"], torch.arange(4.0))


def test_no_byte_of_a_checkpoint_can_change_unseen(path):
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
            load_checkpoint(path, "a task", {"step": int})


@pytest.mark.parametrize("size", [0, 10, 70, 72, 500, -1])
def test_a_checkpoint_that_was_cut_is_refused(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged .*remove it"):
        load_checkpoint(path, "a task", {"step": int})


def test_a_checkpoint_without_a_checksum_is_refused(path):
    torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="lacks its checksum"):
        load_checkpoint(path, "a task", {"step": int})


def save_where_nothing_fits(path, outcome):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_checkpoint({"step": 4, "network": torch.zeros(1_000_000)}, path)
    except OSError as error:
        outcome.put((error.filename, error.strerror))


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(path):
    fork = multiprocessing.get_context("fork")
    outcome = fork.SimpleQueue()
    process = fork.Process(target=save_where_nothing_fits, args=(path, outcome))
    process.start()
    process.join(60)
    file, reason = outcome.get()
    assert "checkpoint.pt" in file
    assert reason == "File too large"
    assert load_checkpoint(path, "a task", {"step": int})["step"] == 3
    assert [item.name for item in path.parent.iterdir()] == ["checkpoint.pt"]
