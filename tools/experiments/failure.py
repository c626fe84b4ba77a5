"""What went wrong, in words for a person: bad input and a machine out of resources are no bugs."""

from __future__ import annotations

import errno
import re

from backbones.config import printable
from backbones.device import OUT_OF_MEMORY

_LONGEST, _TAIL = 2000, 500  # characters of a message, and of its end

# How torch and safetensors, which raise errors of their own, tell of the machine.
_RESOURCES = (
    (r"No space left on device|StorageFull|file write failed|os error 28", "the disk is full"),
    (r"Read-only file system|os error 30", "the disk is read-only"),
    (r"Permission denied|os error 13", "no permission to write there"),
    (
        r"DataLoader worker .*(killed|exited unexpectedly)|worker .*bus error|Bus error",
        "a process that reads images was killed, as the system does where memory or shared memory "
        "is short; lower data.workers or the batch size",
    ),
    (r"Connection (closed|reset) by peer|NCCL ", "another process of the run was lost"),
    (
        OUT_OF_MEMORY.pattern,
        "out of memory; lower the batch size, or raise train.accumulate",
    ),
)

# What an extra brings, where it is not simply called like the extra.
_EXTRAS = {
    "detection": ("hotcoco", "pycocotools", "fvcore", "omegaconf", "iopath", "yacs", "termcolor"),
    "openmmlab": ("mmengine", "mmcv"),
    "corruptions": ("imagecorruptions",),
    "ray": ("ray", "fsspec"),
    "slurm": ("submitit",),
    "tensorboard": ("tensorboard",),
}


def describe_failure(error: BaseException) -> str:
    """One message for an error, without control characters and of bounded length.

    An error that no input and no machine explains is called a bug.
    """
    text = _describe(error)
    text = "\n".join(printable(line) for line in text.splitlines())
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - _TAIL]} ... {text[-_TAIL:]}"  # what is wrong with a name follows it


class StartAgain(RuntimeError):
    """What was wrong is noted: the same command, started again, does better."""


_PASSING = (StartAgain, ConnectionError, TimeoutError, BlockingIOError, InterruptedError)
_PASSING_NUMBERS = (errno.ENOLCK, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE)
_PASSING_WORDS = re.compile(
    r"DataLoader worker .*(killed|exited unexpectedly)|is in use by|[Cc]onnection (reset|refused|closed)"
    r"|timed out|NCCL .*(error|failure)"
)


def can_pass(error: BaseException) -> bool:
    """Whether the same run may do well when it is started again: a connection, a lost worker, a lock."""
    if isinstance(error, _PASSING) or getattr(error, "errno", None) in _PASSING_NUMBERS:
        return True
    return bool(_PASSING_WORDS.search(str(error)))


def _describe(error: BaseException) -> str:
    text = str(error)
    # torch puts the traceback of a worker into the message of its error.
    if re.match(r"Caught \w+ in DataLoader worker", text):
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        mends = {errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EMFILE: "ulimit -n"}
        return f"{text} ({mends[error.errno]})" if error.errno in mends else text
    if isinstance(error, MemoryError):
        return f"out of memory: {text}" if text else "out of memory"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _describe_missing(error.name.partition(".")[0])
    if isinstance(error, (ValueError, OSError, ImportError, FloatingPointError, StartAgain)):
        return text
    for pattern, meaning in _RESOURCES:
        if re.search(pattern, text):
            return f"{meaning} ({text.splitlines()[0]})"
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    return (
        f"{type(error).__name__}: {text} (this is a bug in sebench; --debug prints the traceback)"
    )


def _describe_missing(package: str) -> str:
    if package == "detectron2":
        return (
            "Detectron2 is not installed; from sebench's folder: pip install '.[detection]' and "
            "python -m tools.install_detectron2"
        )
    extra = next((name for name, packages in _EXTRAS.items() if package in packages), None)
    mend = f"pip install 'sebench[{extra}]'" if extra else f"pip install {package}"
    return f"{package} is not installed: {mend}"
