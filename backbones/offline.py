"""Whether this process may use the network: the one place that decides, and that all downloads ask.

Addresses that a person gives (a cluster, `store=`, a tracking server) are used as they are given.
"""

import os
from collections.abc import Mapping

SWITCH = "SEBENCH_OFFLINE"
_SWITCHES = (SWITCH, "HF_HUB_OFFLINE")
_YES = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its own

# What keeps the libraries that a run may import from calling home.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",  # `wandb sync` sends its files later
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",  # trackio's
    "RAY_USAGE_STATS_ENABLED": "0",
}


def is_offline() -> bool:
    """Whether SEBENCH_OFFLINE or HF_HUB_OFFLINE forbids downloads."""
    return bool(switches())


def go_offline() -> None:
    """Forbid the network to this process and those it starts, and tell the libraries."""
    os.environ.update({SWITCH: "1", **_QUIET})


def switches() -> dict[str, str]:
    """The switches that are set here, for a process elsewhere to take over."""
    return {name: os.environ[name] for name in _SWITCHES if _is_on(name)}


def follow_switches(given: Mapping[str, str] | None = None) -> None:
    """Take over what another process gave, and `go_offline` where SEBENCH_OFFLINE is set."""
    os.environ.update(given or {})
    if _is_on(SWITCH):
        go_offline()


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").upper() in _YES


def require_network(what: str, where: str) -> None:
    """To be called before anything is downloaded.

    Args:
        what: is missing, e.g. "the weights timm:resnet18".
        where: it was looked for.

    Raises:
        ValueError: this process is offline.
    """
    if is_offline():
        name, value = next(iter(switches().items()))
        raise ValueError(
            f"{what}: not found, looked for {where}; offline ({name}={value}), so nothing is "
            "downloaded: where there is a network, the same command with --download-only brings it"
        )
