"""Energy of a GPU, by NVML's counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def energy_meter(device: torch.device) -> Callable[[], float]:
    """What reads the joules that a GPU has used since its driver was loaded.

    Raises:
        ValueError: the device has no such counter that can be read here; the message says why.
    """
    if device.type != "cuda":
        raise ValueError("NVML tells the energy of NVIDIA GPUs alone")
    try:
        import pynvml
    except ImportError:
        raise ValueError("NVML is not installed: pip install nvidia-ml-py") from None
    return _meter(pynvml, str(torch.cuda.get_device_properties(device).uuid))


def _meter(nvml: Any, uuid: str) -> Callable[[], float]:
    """The meter of one GPU, by its UUID: CUDA and NVML number them in different ways."""
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        raise ValueError(f"NVML: {error}") from None
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000  # from millijoules
