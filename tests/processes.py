"""Entry points in several processes, as torchrun starts them, but without importing anything anew."""

import json
import multiprocessing
import os
import socket
from dataclasses import asdict


def join(door, rank, count, port, settings, directory):
    """What torchrun does for a process, then one of the doors."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = door(settings, directory)
    assert (result is None) == (rank > 0)
    if rank == 0:
        (directory / "result.json").write_text(json.dumps(asdict(result)))


def in_processes(door, count, settings, directory, ends=0, method="fork"):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context(method)
    arguments = [(door, rank, count, port, settings, directory) for rank in range(count)]
    started = [context.Process(target=join, args=args) for args in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [ends] * count
    if ends:
        return None
    return json.loads((directory / "result.json").read_text())
