"""Downloads come before a study, or are missed before it computes; offline, nothing is connected to."""

import hashlib
import io
import os
import pickle
import sys
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
import torch.hub
import torchvision.datasets
import yaml

from backbones import files, offline
from backbones.libraries import download
from tools import sample_data
from tools.experiments.job import Job, run_job
from tools.experiments.record import Git, read_record
from tools.experiments.study import load_study, plan

WEIGHTS = "timm:test_resnet.r160_in1k"
_watched: list[list[str]] = []  # attempts to connect go to the last list, if there is one


def _watch(event, arguments):
    if _watched and event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        _watched[-1].append(str(host))
        raise OSError(f"blocked: {host}")


sys.addaudithook(_watch)  # sees what is connected to by any Python code


@contextmanager
def _watching():
    """Hosts that are tried meanwhile, and cannot be reached."""
    _watched.append([])
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


@pytest.fixture
def attempts():
    with _watching() as found:
        yield found


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path):
    """No switch is set, and caches are empty."""
    for name in (offline.SWITCH, *offline._QUIET):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def study(tmp_path):
    """One cell that starts from published weights, on CIFAR-10."""
    settings = {
        "train": {"iterations": 1, "batch_size": 4, "schedule": {"warmup": 0}, "tensorboard": False},
        "evaluate": {"every": 0},
    }  # fmt: skip
    entry = {
        "name": "small", "task": "classification", "recipe": "cifar-short", "data_root": "cifar10",
        "backbones": [{"name": "timm:test_resnet", "weights": WEIGHTS}], "settings": settings,
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"experiments": [entry]}))
    return path


@pytest.fixture
def publishers(monkeypatch, tmp_path):
    """The Hub and CIFAR's home on this machine, with small contents; gives the paths that were asked for."""
    root = sample_data.make_cifar10(tmp_path / "published", 5, 2) / "cifar-10-batches-py"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(root, root.name)
    torch.manual_seed(0)
    state = timm.create_model("test_resnet").state_dict()
    contents = {
        "/cifar-10-python.tar.gz": archive.getvalue(),
        "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors": safetensors.torch.save(state),
    }
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            content = contents.get(self.path, b"")
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(contents.get(self.path, b""))

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    hub = huggingface_hub.constants
    monkeypatch.setattr(hub, "ENDPOINT", url)
    monkeypatch.setattr(
        hub, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "url", f"{url}/cifar-10-python.tar.gz")
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    for parts in ("train_list", "test_list"):
        summed = [
            [name, hashlib.md5((root / name).read_bytes()).hexdigest()]
            for name, _ in getattr(cifar, parts)
        ]
        monkeypatch.setattr(cifar, parts, summed)
    meta = hashlib.md5((root / "batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": meta})
    yield asked
    server.shutdown()
    server.server_close()


def test_what_was_downloaded_is_enough_to_run_offline(sebench, publishers, study):
    code, out, err = sebench("run", study, "-o", "runs", "--download-only")
    assert code == 0, out + err
    assert [line.split()[0] for line in out.splitlines()] == ["fetched", "fetched"]
    assert not Path("runs").exists()  # nothing was run
    asked = len(publishers)
    assert asked > 1
    with _watching() as attempts:
        code, _, err = sebench("run", study, "-o", "runs", "--cell", "0", "--offline")
    assert code == 0, err
    (record,) = Path("runs").glob(f"*/*/{files.RECORD}")
    assert read_record(record).weights.path.endswith(files.WEIGHTS)
    assert not attempts
    assert len(publishers) == asked


def test_offline_one_error_names_all_that_is_missing_and_the_command_that_brings_it(
    sebench, study, attempts
):
    code, _, err = sebench("run", study, "-o", "runs", "--offline")
    assert code == 1
    assert f"weights {WEIGHTS}: looked for model.safetensors in " in err
    assert f"{Path('hub').resolve()}/models--timm--test_resnet.r160_in1k" in err
    assert "data cifar10: looked for data.root=cifar10" in err
    assert f"sebench run {study} -o runs --download-only" in err
    assert not attempts
    assert not list(Path("runs").glob("small/*"))


@pytest.mark.parametrize("switch", [offline.SWITCH, "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("name", [WEIGHTS, "torchvision:squeezenet1_1"])
def test_weights_are_asked_for_over_the_network_unless_a_switch_forbids_it(
    name, switch, attempts, monkeypatch
):
    with pytest.raises(ValueError, match="could not get the weights"):
        download(name)
    assert attempts
    attempts.clear()
    monkeypatch.setenv(switch, "1")
    with pytest.raises(ValueError, match=f"looked for .*offline .{switch}=1.*--download-only"):
        download(name)
    assert not attempts


def test_a_cell_is_offline_wherever_it_runs_if_the_study_is(study, attempts, monkeypatch):
    (cell,) = plan(load_study(study), Path("runs"))
    monkeypatch.setenv(offline.SWITCH, "1")
    sent = pickle.dumps(Job(cell, "sebench run study.yaml --offline", Git()))
    monkeypatch.delenv(offline.SWITCH)  # as on another machine
    failure = run_job(pickle.loads(sent))
    assert "offline, and not everything is here" in failure.error
    assert "sebench run study.yaml --download-only" in failure.error
    assert not failure.can_pass
    assert not attempts
    assert os.environ["WANDB_MODE"] == "offline"


def test_a_script_for_arrays_of_jobs_hands_the_switch_on(sebench, study):
    code, out, _ = sebench("run", study, "-o", "runs", "--cells", "--example", "bash", "--offline")
    assert code == 0
    assert "-o runs --offline --cell" in out


def test_what_is_had_by_hand_is_named_with_its_source_and_layout(sebench, attempts):
    root = sample_data.make_imagenet("imagenet", 2, 1, 1, 32)
    (root / files.SYNTHETIC).unlink()  # as real as a complete one, but for 998 classes
    train = (
        "train",
        "classification",
        "-r",
        "imagenet-paper",
        "-b",
        "resnet_tiny",
        "--download-only",
    )
    code, out, err = sebench(*train, "--data-root", root)
    assert code == 1
    assert out.startswith("missing  data imagenet: ")
    assert "imagenet is had from https://image-net.org" in err
    code, out, err = sebench(
        "train", "detection", "-r", "tiny", "-b", "se_resnet_tiny", *train[-1:]
    )
    assert code == 1
    assert "coco_2017 is had from https://cocodataset.org" in err
    assert not attempts


def test_only_one_module_decides_about_the_network():
    """Every module of ours that could download asks `require_network`; others have no means to."""
    root = Path(__file__).parent.parent
    means = ("urllib.request", "urlopen", "hf_hub_download", "load_state_dict_from_url", "pretrained=True",
             "get_state_dict(", "requests.", "httpx", "snapshot_download", "download=True")  # fmt: skip
    able = set()
    for room in ("backbones", "classification", "detection", "scene", "tools"):
        for path in (root / room).rglob("*.py"):
            if any(word in path.read_text(encoding="utf-8") for word in means):
                able.add(path.relative_to(root).as_posix())
    asked = {"backbones/libraries.py", "tools/experiments/fetch.py"}
    for path in asked:
        assert "require_network(" in (root / path).read_text(encoding="utf-8")
    assert able - asked == {"classification/downloads.py"}  # which fetch.py alone calls


def test_a_failed_download_leaves_no_folder_behind(sebench, study, attempts):
    code, out, _ = sebench("run", study, "-o", "runs", "--download-only")
    assert code == 1
    assert "data cifar10: could not be downloaded from https://www.cs.toronto.edu" in out
    assert attempts
    assert not Path("cifar10").exists()
