"""The environment: Detectron2 comes without the packages that its wheel carries along."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tools
from tools import install_detectron2


def test_the_package_tools_is_ours():
    assert Path(tools.__file__).parent == Path(__file__).parent.parent / "tools"
    assert importlib.util.find_spec("tools.lazyconfig_train_net") is None


def test_an_importable_detectron2_is_found_and_named():
    assert install_detectron2.installed().startswith("Detectron2 0.")


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("detectron2/__init__.py", '__version__ = "0.7.2"\n')
        archive.writestr("detectron2/_C.cpython-310-x86_64-linux-gnu.so", "for another torch")
        archive.writestr("tools/__init__.py", "")
    return path


def test_only_the_python_code_of_detectron2_is_unpacked(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(
        install_detectron2, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest()
    )
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    install_detectron2.unpack(wheel, site_packages)
    unpacked = {str(p.relative_to(site_packages)) for p in site_packages.rglob("*")}
    assert unpacked == {"detectron2", "detectron2/__init__.py"}


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_written(wheel, tmp_path):
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    with pytest.raises(ValueError, match="expected 491af0c7"):
        install_detectron2.unpack(wheel, site_packages)
    assert not list(site_packages.iterdir())


def test_operators_that_need_the_compiled_part_say_so_only_when_used():
    from detectron2.layers import DeformConv

    if "without" not in install_detectron2.installed():
        pytest.skip("this Detectron2 has its compiled operators")
    with pytest.raises(ImportError, match="not compiled"):
        DeformConv(3, 8, kernel_size=3)


# What `pip install .` without extras does not bring.
_OF_EXTRAS = (
    "detectron2 hotcoco pycocotools fvcore omegaconf hydra iopath yacs termcolor cloudpickle mmengine "
    "mmcv tensorboard imagecorruptions jsonschema sklearn statsmodels"
)


@pytest.fixture
def without_extras(tmp_path):
    """Run `sebench` where nothing that an extra brings can be imported."""
    (tmp_path / "sitecustomize.py").write_text(
        f"""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def find_spec_but_for_extras(name, *arguments):
    absent = name.partition(".")[0] in {_OF_EXTRAS.split()!r}
    return None if absent else find_spec(name, *arguments)

PathFinder.find_spec = find_spec_but_for_extras
"""
    )
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}

    def run(*arguments):
        command = [sys.executable, "-m", "tools", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
        )

    return run


def test_without_extras_help_lists_classifiers_and_reports_work(without_extras, tmp_path):
    from written_runs import record

    from tools import sample_data
    from tools.experiments.record import Metric, write_record

    assert without_extras("--help").returncode == 0
    assert "se_resnet50" in without_extras("list", "backbones").stdout
    error = {"top1_error": Metric(20.0, "percent", False, 400)}
    for network in ("resnet20", "se_resnet20"):
        (tmp_path / "runs" / network).mkdir(parents=True)
        write_record(record(network=network, metrics=error), tmp_path / "runs" / network)
    done = without_extras("report", "runs", "--output", "report")
    assert done.returncode == 0, done.stderr
    root = sample_data.make_cifar10(tmp_path / "cifar10", 4, 4)
    train = ("train", "classification", "-r", "cifar-preact", "-b", "resnet20", "-o", "out")
    short = ("train.iterations=1", "train.batch_size=8", "train.schedule.warmup=0")
    done = without_extras(*train, "--data-root", root, *short)
    assert done.returncode == 0, done.stderr


def test_detection_without_its_extra_names_it(without_extras):
    done = without_extras("train", "detection", "-r", "tiny", "--dry-run")
    assert done.returncode == 1
    assert "pip install '.[detection]'" in done.stderr
    assert "bug" not in done.stderr
