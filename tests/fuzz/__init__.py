"""Broken files of every kind, given to the command line: it refuses them clearly, or is right.

    python -m tests.fuzz --files 20000          all kinds; goes on with --start after an interruption
    python -m tests.fuzz --kind npz --case 17   one file again, with the traceback of what it meets

A case is a function of seed and number alone. Workers are forked from one process that has imported
everything, hold at most 2 GB more than it does, and have ten seconds of processor time a file.
"""

import importlib

_MODULES = ("hotcoco", "msgspec", "pyarrow.parquet", "torch._dynamo", "torch.utils.tensorboard", "classification.run",
            "detection.run", "scene.run", "tools.experiments.record", "tools.experiments.study", "tools.report.exports",
            "tools.report.page", "tools.report.table", "tools.cli.display", "backbones.weights.convert")  # fmt: skip


def import_readers() -> None:
    """Import once what every forked process would import for itself."""
    for module in _MODULES:
        importlib.import_module(module)
