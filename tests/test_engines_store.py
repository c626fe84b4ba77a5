"""Results under s3://, on a server of this machine: `make engines`.

It comes with `pip install s3fs "moto[server]"`, in an environment without our constraints: botocore
wants an older python-dateutil.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from backbones import files
from tests.small_studies import entry, write_study
from tools.experiments.executors.store import Store
from tools.experiments.study import load_study, plan

pytestmark = pytest.mark.engines

SERVERS = {
    "s3": (("s3fs", "moto"), "from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"),
}  # fmt: skip


@contextmanager
def serve(scheme):
    """An object store in a process of its own; gives the environment in which clients find it."""
    needed, code = SERVERS[scheme]
    for name in needed:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", code.format(port=port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "no_proxy": "127.0.0.1,localhost",
        }  # fmt: skip
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module", params=SERVERS)
def bucket(request):
    """URL of an empty bucket."""
    with serve(request.param) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class(request.param).clear_instance_cache()
        system = fsspec.filesystem(request.param)
        if not system.exists("bucket"):
            system.mkdir("bucket")
        yield f"{request.param}://bucket"


@pytest.fixture
def store(bucket, request):
    return Store(f"{bucket}/{request.node.name.partition('[')[0]}")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def test_another_machine_fetches_what_a_run_put_last(store, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    run = here / "first" / "resnet-seed0"
    with store.kept(run, here):
        run.mkdir(parents=True)
        (run / files.CHECKPOINT).write_bytes(os.urandom(6_000_000))  # above a part of an upload
        (run / files.CURVE).write_text("one\n")
    store.fetch(there / "first" / "resnet-seed0", there)
    assert _contents(there / "first" / "resnet-seed0") == _contents(run)
    with store.kept(run, here):
        (run / files.CHECKPOINT).write_bytes(os.urandom(1000))
        (run / files.CURVE).write_text("one\ntwo\n")
        (run / files.WEIGHTS).write_bytes(b"weights")
    store.fetch(there / "first" / "resnet-seed0", there)
    assert _contents(there / "first" / "resnet-seed0") == _contents(run)
    system, root = fsspec.core.url_to_fs(store.url)
    assert not [name for name in system.find(root) if ".partial" in name]


def test_a_run_that_appears_after_the_first_look_is_found(store, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for seed in (0, 1):
        run = Path("first") / f"resnet-seed{seed}"
        store.fetch(there / run, there)  # a look before there is anything
        (here / run).mkdir(parents=True)
        (here / run / files.RECORD).write_text("{}")
        command = (
            "import sys; from pathlib import Path; from tools.experiments.executors.store import Store; "
            "Store(sys.argv[1]).put(Path(sys.argv[2]), Path(sys.argv[3]), {})"
        )
        arguments = [store.url, here / run, here]
        subprocess.run([sys.executable, "-c", command, *map(str, arguments)], check=True)
        store.fetch(there / run, there)
        assert _contents(there / run) == {files.RECORD: b"{}"}


def test_a_checkpoint_is_gone_there_too_once_the_run_is_recorded(store, tmp_path):
    run = tmp_path / "first" / "resnet-seed0"
    run.mkdir(parents=True)
    (run / files.CHECKPOINT).write_bytes(b"state")
    store.put(run, tmp_path, {})
    (run / files.CHECKPOINT).unlink()
    (run / files.RECORD).write_text("{}")
    store.put(run, tmp_path, {})
    store.fetch(tmp_path / "there" / "first" / "resnet-seed0", tmp_path / "there")
    assert set(_contents(tmp_path / "there" / "first" / "resnet-seed0")) == {files.RECORD}


def test_a_beating_run_is_seen_from_elsewhere(store, tmp_path):
    run, there = tmp_path / "first" / "resnet-seed0", tmp_path / "there"
    store.fetch_heartbeat(there / "first" / "resnet-seed0", there)  # there is none yet
    run.mkdir(parents=True)
    for beat in ("1", "22"):
        (run / files.HEARTBEAT).write_text(beat)
        store.put(run, tmp_path, {})
        store.fetch_heartbeat(there / "first" / "resnet-seed0", there)
        assert (there / "first" / "resnet-seed0" / files.HEARTBEAT).read_text() == beat


def test_a_cell_goes_on_elsewhere_from_what_lies_in_the_bucket(store, tmp_path):
    from tools.experiments.job import Job, run_job
    from tools.experiments.record import Git
    from tools.experiments.study import make_sample_data

    study = load_study(write_study(tmp_path / "study.yaml", entry(2)))
    for output in (tmp_path / "a", tmp_path / "b"):  # the second finds all done
        make_sample_data(study, output)
        (cell,) = plan(study, output)
        with store.kept(cell.directory, output):
            recorded = cell.status() == "recorded"
            assert run_job(Job(cell, None, Git())) is None
        assert recorded == (output.name == "b")
    found = [(tmp_path / name / "first").glob("*/weights.safetensors") for name in "ab"]
    assert len({next(each).read_bytes() for each in found}) == 1
