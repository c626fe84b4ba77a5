"""The devkit's class numbers by a reader of our own: what SciPy reads, and no memory that is not there."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from classification.devkit import read_synsets
from tests.fuzz.mutations import mutate_bytes

FIELDS = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]  # fmt: skip
ROWS = [
    (1, "n02119789", "kit fox, Vulpes macrotis", 0, np.zeros((1, 0))),
    (2, "n02100735", "English setter", 0, np.zeros((1, 0))),
    (300, "n01495493", "angel shark, Schnäpel", 0.0, np.zeros((1, 0))),
    (1001, "n00001740", "entity", 2, np.array([[1, 2]], np.uint16)),
]
CLASSES = {1: "n02119789", 2: "n02100735", 300: "n01495493"}


def written(path, compressed, rows=ROWS, **more):
    table = np.array(rows, dtype=FIELDS).reshape(-1, 1)
    savemat(path, {"other": np.eye(3), "synsets": table, **more}, do_compression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_the_classes_are_those_that_scipy_reads(compressed, tmp_path):
    path = written(tmp_path / "meta.mat", compressed)
    rows = loadmat(path, squeeze_me=True)["synsets"]
    theirs = {int(r["ILSVRC2012_ID"]): str(r["WNID"]) for r in rows if r["num_children"] == 0}
    assert read_synsets(path) == theirs == CLASSES


def test_a_file_without_the_table_is_refused_by_name(tmp_path):
    path = tmp_path / "meta.mat"
    for content in (b"", b"text" * 100, bytes(200)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"meta\.mat: not the devkit's, or damaged"):
            read_synsets(path)
    savemat(path, {"synsets": 1, "more": "x"})
    with pytest.raises(ValueError, match="synsets is no table"):
        read_synsets(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_refused_by_name_or_read(compressed, tmp_path):
    """SciPy crashes the interpreter on one in a few hundred of them."""
    whole = written(tmp_path / "meta.mat", compressed).read_bytes()
    refused = 0
    for seed in range(1000):
        path = Path(tmp_path / "broken.mat")
        path.write_bytes(mutate_bytes(whole, Random(seed)))
        try:
            found = read_synsets(path)
        except ValueError as error:
            assert type(error) is ValueError  # noqa: PT017
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        else:
            assert all(isinstance(k, int) and isinstance(v, str) for k, v in found.items())
    assert refused > 300
