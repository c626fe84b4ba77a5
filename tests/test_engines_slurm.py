"""A study on a real Slurm of one node on this machine: `make engines`, as root with Slurm installed."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from backbones import files
from tests.small_studies import entry, start, write_study

pytest.importorskip("submitit")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))),
        reason="needs root and apt-get install slurmctld slurmd slurm-client munge",
    ),
]

EPOCHS_OF_MINUTES = 600  # more than the minute that a job has

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
MpiDefault=none
KillWait=25
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=UNLIMITED
"""


def _wait_for(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _daemon(*command: object, **environment: str):
    process = subprocess.Popen(list(map(str, command)), env=os.environ | environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def slurm(monkeypatch_module):
    """A controller and a node of two cores, which only this machine can reach."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        munge = [
            f"--{option}={folder}/munge.{end}"
            for option, end in (
                ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"),
                ("log-file", "log"), ("seed-file", "seed"),
            )
        ]  # fmt: skip
        stack.enter_context(_daemon("munged", "--foreground", "--force", *munge))
        host = socket.gethostname().partition(".")[0]
        ports = {"port": _free_port(), "node_port": _free_port()}
        configuration = folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(host=host, folder=folder, **ports))
        monkeypatch_module.setenv("SLURM_CONF", str(configuration))
        _wait_for((folder / "munge.socket").exists, "munged")
        stack.enter_context(_daemon("slurmctld", "-D"))
        stack.enter_context(_daemon("slurmd", "-D", "-N", host))
        _wait_for(lambda: "idle" in _ask("sinfo", "-h", "-o", "%T"), "no node came up")
        yield
        _ask("scancel", "--user=root")


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def _finish(run: subprocess.Popen) -> str:
    _, err = run.communicate(timeout=500)
    assert run.returncode == 0, err
    return err


def _result(output: Path) -> tuple:
    (path,) = output.glob("first/*/record.json")
    points = [json.loads(line) for line in (path.parent / files.CURVE).open()]
    losses = [(point["step"], point.get("loss")) for point in points]
    weights = (path.parent / files.WEIGHTS).read_bytes()
    return weights, losses, json.loads(path.read_text())["metrics"]


def _log(output: Path) -> str:
    (path,) = output.glob("first/*/log.txt")
    return path.read_text()


def _undisturbed(folder: Path, epochs: int) -> tuple[Path, tuple]:
    study = write_study(folder / "study.yaml", entry(epochs))
    _finish(start(study, folder / "alone"))
    return study, _result(folder / "alone")


def test_a_requeued_job_ends_with_the_weights_of_an_undisturbed_run(slurm, tmp_path):
    study, wanted = _undisturbed(tmp_path, epochs=60)
    output = tmp_path / "out"
    run = start(study, output, "--executor", "slurm", "partition=main", "time=30")
    _wait_for(
        lambda: list(output.glob("first/*/checkpoint.pt")) or run.poll() is not None,
        "no checkpoint",
    )
    assert run.poll() is None, run.stderr.read()
    (number,) = _ask("squeue", "-h", "-o", "%i").split()
    subprocess.run(["scontrol", "requeue", number], check=True)
    _finish(run)
    assert "resumed at step" in _log(output)
    assert _result(output) == wanted
    assert "Restarts=1" in _ask("scontrol", "show", "job", number)


def test_a_job_over_its_time_goes_on_to_the_weights_of_an_undisturbed_run(slurm, tmp_path):
    study, wanted = _undisturbed(tmp_path, epochs=EPOCHS_OF_MINUTES)
    output = tmp_path / "out"
    run = start(study, output, "--executor", "slurm", "partition=main", "time=1", "notice=5")
    _finish(run)
    assert "stopped by SIGTERM" in _log(output)
    assert "resumed at step" in _log(output)
    assert _result(output) == wanted


def test_a_job_that_is_cancelled_counts_as_lost_and_is_submitted_again(slurm, tmp_path):
    study = write_study(tmp_path / "study.yaml", entry(20))
    run = start(study, tmp_path / "out", "--executor", "slurm", "time=30")
    _wait_for(lambda: "RUNNING" in _ask("squeue", "-h", "-o", "%T"), "no job")
    (number,) = _ask("squeue", "-h", "-o", "%i").split()
    _ask("scancel", number)
    _finish(run)
    assert number not in _ask("squeue", "-h", "-o", "%i")


def test_what_the_cluster_lacks_is_told_at_once(slurm, tmp_path):
    study = write_study(tmp_path / "study.yaml", entry(1))
    run = start(study, tmp_path / "out", "--executor", "slurm", "partition=none", "time=30")
    _, err = run.communicate(timeout=200)
    assert run.returncode == 1
    assert "first · resnet_tiny-seed0: Slurm refuses it: sbatch: error: " in err
    assert "invalid partition" in err
