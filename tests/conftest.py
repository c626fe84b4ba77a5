"""What holds for every test: one thread, no display, no network beyond this machine."""

import os
import socket
import sys

import pytest

# Before torch is imported: two test processes on two cores must not each start a thread a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_LOCAL = ("127.", "::1", "localhost", "/")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def connect_here(self, address):
        host = address[0] if isinstance(address, tuple) else str(address)
        if self.family != socket.AF_UNIX and not str(host).startswith(_LOCAL):
            raise OSError(f"a test tried to reach {host}: tests run without a network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def sebench(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, stdout, stderr."""
    from tools import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sebench", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def pytest_collection_modifyitems(config, items):
    if "engines" not in config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("engines"):
                item.add_marker(pytest.mark.skip(reason="asked for by `make engines`"))
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
