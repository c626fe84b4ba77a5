"""A study on a real Ray cluster of two nodes on this machine: `make engines`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from backbones import files
from tests.small_studies import entry, start, write_study

pytest.importorskip("ray")
pytestmark = pytest.mark.engines

ENVIRONMENT = {
    **os.environ,
    "RAY_USAGE_STATS_ENABLED": "0",
    "no_proxy": "127.0.0.1,localhost",
    "OMP_NUM_THREADS": "1",
}


def _wait_for(condition, what, seconds=150):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@contextmanager
def _node(log: Path, *options: str):
    """A node as a process group of its own, which ends with the block."""
    ray = Path(sys.executable).parent / "ray"
    command = [ray, "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1", *options]
    with log.open("w") as file:
        node = subprocess.Popen(
            command, stdout=file, stderr=file, env=ENVIRONMENT, start_new_session=True
        )
    try:
        _wait_for(lambda: "Ray runtime started" in log.read_text(), f"see {log}")
        yield node
    finally:
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


@pytest.fixture
def cluster(tmp_path):
    """(address, head, second): two nodes of a core each, which only this machine can reach."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(_short_folder()))
        port = f"--port={address.partition(':')[2]}"
        head = ("--head", port, "--include-dashboard=false", f"--temp-dir={temporary}")
        nodes = [stack.enter_context(_node(tmp_path / "head.txt", *head))]
        nodes += [stack.enter_context(_node(tmp_path / "second.txt", f"--address={address}"))]
        yield address, *nodes


@contextmanager
def _short_folder():
    """Ray puts sockets there, whose paths must be short."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield name


def _study(path: Path, epochs: int) -> Path:
    networks = ["se_resnet_tiny"]
    second = entry(1, name="second", backbones=networks, weights_from="first")
    return write_study(path, entry(epochs, backbones=networks), second)


def _run(study: Path, output: Path, *options: str) -> subprocess.Popen:
    return start(study, output, *options, **ENVIRONMENT)


def _results(output: Path) -> dict[str, tuple]:
    """Weights, losses and metrics of every cell."""
    found = {}
    for path in output.glob("*/*/record.json"):
        points = [json.loads(line) for line in (path.parent / files.CURVE).open()]
        found[f"{path.parent.parent.name}/{path.parent.name}"] = (
            (path.parent / files.WEIGHTS).read_bytes(),
            [(point["step"], point.get("loss")) for point in points],
            json.loads(path.read_text())["metrics"],
        )
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A study and what its cells come to on this machine alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = _study(folder / "study.yaml", epochs=40)
    run = _run(study, folder / "out")
    _, err = run.communicate(timeout=400)
    assert run.returncode == 0, err
    return study, _results(folder / "out")


def test_cells_of_a_node_that_is_killed_go_on_elsewhere_to_the_same_weights(
    cluster, undisturbed, tmp_path
):
    address, _, second = cluster
    study, wanted = undisturbed
    output = tmp_path / "out"
    run = _run(study, output, "--executor", "ray", f"address={address}")
    try:
        checkpoints = [
            output / "first" / f"{n}-seed0" / files.CHECKPOINT
            for n in ("resnet_tiny", "se_resnet_tiny")
        ]
        _wait_for(lambda: all(p.is_file() for p in checkpoints) or run.poll(), "no checkpoint")
        assert run.poll() is None
        assert not list(output.glob("first/*/record.json"))  # mid-run
        os.killpg(second.pid, signal.SIGKILL)
        _, err = run.communicate(timeout=400)
    finally:
        run.kill()
    assert run.returncode == 0, err
    logs = [path.read_text() for path in output.glob("first/*/log.txt")]
    assert sum("resumed at step" in log for log in logs) == 1
    assert _results(output) == wanted
    assert (output / "report" / "report.html").is_file()


def test_results_under_a_url_are_enough_to_go_on_from_another_machine(
    cluster, undisturbed, tmp_path
):
    address, *_ = cluster
    study, wanted = undisturbed
    store = tmp_path / "store"
    ray = ("--executor", "ray", f"address={address}", f"store=file://{store}")
    run = _run(study, tmp_path / "here", *ray)
    _wait_for(lambda: list(tmp_path.glob("here/first/*/checkpoint.pt")) or run.poll(), "none")
    run.send_signal(signal.SIGTERM)  # its runs save, and their nodes put that under the URL
    _, err = run.communicate(timeout=120)
    assert "go on with the same command" in err
    (tmp_path / "here").rename(tmp_path / "lost")
    run = _run(study, tmp_path / "here", *ray)
    _, err = run.communicate(timeout=400)
    assert run.returncode == 0, err
    assert any("resumed at step" in p.read_text() for p in tmp_path.glob("here/first/*/log.txt"))
    assert _results(tmp_path / "here") == wanted
    assert len(list(store.glob("*/*/record.json"))) == 4


def test_what_no_node_has_is_refused_before_anything_runs(cluster, tmp_path):
    address, *_ = cluster
    study = yaml.safe_load(_study(tmp_path / "s.yaml", 1).read_text())
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "needs": {"gpus": 2}}))
    run = _run(tmp_path / "s.yaml", tmp_path / "out", "--executor", "ray", f"address={address}")
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "first/resnet_tiny-seed0 needs 2 of GPU, but no node of the cluster has more" in err
