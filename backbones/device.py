"""The machine: which device, which processor, how much memory was used, and how it is kept."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


class StepOutOfMemory(MemoryError):
    """A step of training needed more memory than there is; fewer images at a time may do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of torch or Python, says that memory is short."""
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


# In words of torch's allocators.
OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|can't allocate memory|not enough memory|Cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED"
)


def choose_device(wish: str, local_rank: int = 0) -> torch.device:
    """Turn 'auto', 'cpu', 'cuda', 'cuda:1', ... into a device that exists here.

    Args:
        wish: the setting `device`.
        local_rank: which GPU of this machine 'auto' and 'cuda' mean, one for each process.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wish == "auto":
        wish = "cuda" if found else "cpu"
    kind, _, index = wish.partition(":")
    if kind not in ("cpu", "cuda") or not (index or "0").isdecimal():
        raise ValueError(f"device={wish!r}: choose auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(index) if index else local_rank)
    if device.index >= found:
        raise ValueError(f"device={wish}: this machine has {found} CUDA devices; device=cpu works")
    return device


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: of a GPU by tensors, else of this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # man 2 getrusage
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_of_call(function: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call needs beyond what is taken before it; None where that cannot be told.

    On a GPU those of tensors; on Linux the growth of the process, whose peak is set back first.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        return None
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would not be seen growing
    try:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: sets VmHWM back
        before = _kibibytes("VmRSS")
        function()
        return 1024 * max(0, _kibibytes("VmHWM") - before)
    except OSError:
        return None


def _kibibytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def processor_name() -> str:
    """The processor's model, e.g. 'AMD EPYC 7763 64-Core Processor'."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def keep_large_tensors_on_heap() -> bool:
    """Tell glibc to keep the memory of freed tensors for the next ones.

    By default it maps every large tensor from the system and gives it back, and each forward pass
    pays a page fault for every 4 KiB again: about a third of the time of ResNet-50 at batch 16 on
    a CPU. The price is that memory once used stays with the process until it ends.

    The command line calls this before it computes. As a library, call it yourself, before the first
    large tensor; importing a backbone never does.

    Returns:
        Whether it took effect: on Linux with glibc, not elsewhere.
    Source: man 3 mallopt.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No tensor is mapped on its own, and the top of the heap is never given back.
    return mallopt(_M_MMAP_MAX, 0) == 1 and mallopt(_M_TRIM_THRESHOLD, -1) == 1
