"""The environment: Detectron2 comes without the packages that its wheel carries along."""

import hashlib
import importlib.util
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
