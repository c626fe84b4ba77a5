"""Install Detectron2 where there is none: `python -m tools.install_detectron2`.

Detectron2 has no release on PyPI. `sal-detectron2` 0.7.2 there is upstream's tree of 2024-04-17, unchanged but for its
version string and one fix for Python 3.11. Its wheel is not installed as it is, for three reasons: it is tagged for
Python 3.10 although its Python code also runs on 3.11 and 3.12; its compiled `_C` is for another torch; and it carries
a top-level package `tools` that would hide ours. So the wheel is downloaded, its hash checked, and `detectron2/` alone,
without `_C`, is moved into site-packages. Faster R-CNN needs none of `_C`: its operators are torchvision's.

An importable Detectron2 is left alone: who has a GPU builds upstream from source, and that build is used.
Standard library only, since it runs before anything else is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
_COMPILED = (".so", ".pyd", ".dylib")


def installed() -> str | None:
    """One line about the Detectron2 that Python would import (version, operators, place), or None."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    version = re.search(r'__version__ = "([^"]+)"', Path(spec.origin).read_text(encoding="utf-8"))
    compiled = any(path.suffix in _COMPILED for path in package.glob("_C*"))
    operators = "with compiled operators" if compiled else "without compiled operators"
    return f"Detectron2 {version[1] if version else '(no version)'}, {operators}, in {package}"


def unpack(wheel: Path, site_packages: Path) -> None:
    """Move `detectron2/` of `wheel` into `site_packages`, whole or not at all.

    Raises:
        ValueError: the wheel's SHA-256 is not the one known, or it would write outside its own folder.
    """
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{wheel.name} has SHA-256 {digest}, expected {SHA256}; nothing was installed. "
            "Download it again, or build Detectron2 from source."
        )
    with (
        tempfile.TemporaryDirectory(dir=site_packages) as scratch,
        zipfile.ZipFile(wheel) as archive,
    ):
        members = [
            name
            for name in archive.namelist()
            if name.startswith("detectron2/") and not name.endswith(_COMPILED)
        ]
        if unsafe := [name for name in members if ".." in Path(name).parts]:
            raise ValueError(f"{wheel.name} would write outside its folder: {unsafe[0]}")
        archive.extractall(scratch, members)
        shutil.move(str(Path(scratch, "detectron2")), str(site_packages / "detectron2"))


def download(directory: Path) -> Path:
    """Have pip download the wheel, whatever Python and platform its tag names; return its path."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--python-version", "3.10", "--implementation", "cp", "--abi", "none"]
    command += ["--platform", "any", "--dest", str(directory), REQUIREMENT]
    subprocess.run(command, check=True)
    return next(directory.glob("sal_detectron2-*.whl"))


def main() -> int:
    """Install it where it is not there, and say what is; returns the exit code."""
    found = installed()
    if found is None:
        with tempfile.TemporaryDirectory() as directory:
            try:
                unpack(download(Path(directory)), Path(sysconfig.get_paths()["purelib"]))
            except (subprocess.CalledProcessError, ValueError) as error:
                print(f"Detectron2 was not installed: {error}", file=sys.stderr)
                return 1
        importlib.invalidate_caches()
        print(f"Installed {installed()}")
    else:
        print(f"Found {found}: left alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
