"""Large tensors stay on the heap when asked for, and only then."""

import platform
import subprocess
import sys

import pytest

GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"

FAULTS = """
import resource, sys
from backbones.device import keep_large_tensors_on_heap
if sys.argv[1] == "kept":
    assert keep_large_tensors_on_heap()
import torch
import backbones.features
x = torch.ones(10 << 20)  # 42 MB
def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        x + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with torch.inference_mode():
    faults(12)
    print(faults(2))
"""


def page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="glibc's allocator alone can be told so")
def test_freed_tensors_are_used_again_without_page_faults():
    assert page_faults("kept") < 100
    assert page_faults("as it comes") > 10_000  # importing a backbone changes nothing


def test_elsewhere_it_does_nothing_and_says_so(monkeypatch):
    from backbones.device import keep_large_tensors_on_heap

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_large_tensors_on_heap() is False
