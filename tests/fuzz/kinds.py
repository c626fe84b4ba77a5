"""What is broken, how it is given to the suite, and who else can say what is in it.

Every kind of file goes through the command line that reads it. `{root}` is the folder of whole files
(`write_templates`), `{file}` the broken one among them, `{out}` an empty folder.
"""

import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from tests.fuzz import mutations as m

Oracle = Callable[[Path, str], str | None]  # (broken file, stdout) -> what is wrong, or None


@dataclass(frozen=True)
class Kind:
    file: str  # under the root
    mutate: m.Mutation
    check: str  # the command line; with `then` it is a check before anything is computed
    then: str = ""  # what must run to its end where the check says well
    oracle: Oracle = lambda file, printed: None
    share: float = 1.0  # how often it is drawn
    copied: str = ""  # a folder of the root that stands in {out}, with the broken file in it

    @property
    def is_fast(self) -> bool:
        """Whether a few hundredths of a second are enough."""
        return self.check in (_INSPECT, _SCORE)


# Commands ----------------------------------------------------------------------------------------

_TINY = "evaluate.resize=40 evaluate.crop=32 augment.size=32 train.epochs=1 train.batch_size=4 train.tensorboard=false"  # fmt: skip
CIFAR = "train classification -r cifar-short -b resnet8_for_tests --import {root}/tiny.py --data-root {root}/cifar train.batch_size=10 train.epochs=1 train.tensorboard=false train.schedule.warmup=1"  # fmt: skip
FASHION = "train classification -r fashion-mnist -b resnet8_for_tests --import {root}/tiny.py --data-root {root}/fashion train.batch_size=10 train.epochs=1 train.tensorboard=false train.schedule.warmup=1"  # fmt: skip
FOLDER = f"train classification -r imagenet-paper -b resnet8_for_tests --import {{root}}/tiny.py --data folder --data-root {{root}}/folder {_TINY}"  # fmt: skip
IMAGENET = f"train classification -r imagenet-paper -b resnet8_for_tests --import {{root}}/tiny.py --data-root {{root}}/imagenet data.classes=folders {_TINY}"  # fmt: skip
PLACES = f"train scene -r places365-short -b resnet8_for_tests --import {{root}}/tiny.py --data-root {{root}}/places {_TINY} train.precision=float32 train.schedule.warmup=1"  # fmt: skip
RUN = f"train classification -r imagenet-paper -b resnet_tiny --data-root {{root}}/imagenet data.classes=folders {_TINY}"  # fmt: skip
COCO = "train detection -r tiny -b resnet_tiny --data-root {root}/coco train.batch_size=2 train.iterations=2 train.warmup_iterations=1 data.workers=-1"  # fmt: skip
DRY, REAL = " --dry-run --json", " -o {out}/run"


def _trained(
    file: str,
    mutate: m.Mutation,
    command: str,
    oracle: Oracle = lambda *_: None,
    share: float = 1.0,
) -> Kind:
    return Kind(file, mutate, command + DRY, command + REAL, oracle, share / 2)  # they take long


# Oracles -----------------------------------------------------------------------------------------


def _arrays(content: Any, seen: set[int] | None = None) -> Iterator[np.ndarray]:
    """All arrays in nested containers."""
    seen = set() if seen is None else seen
    if id(content) in seen:
        return
    seen.add(id(content))
    if isinstance(content, torch.Tensor):
        yield content.detach().contiguous().view(-1).view(torch.uint8).numpy() if content.numel() else np.empty(0)  # fmt: skip
    elif isinstance(content, np.ndarray) and content.dtype != object:
        yield np.ascontiguousarray(content)
    elif isinstance(content, dict):
        for value in content.values():
            yield from _arrays(value, seen)
    elif isinstance(content, (list, tuple, np.ndarray)):
        for value in content.tolist() if isinstance(content, np.ndarray) else content:
            yield from _arrays(value, seen)


class _Plain(pickle.Unpickler):
    """The standard reader of pickles, for what builds arrays and containers; it runs in a child."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", n) for n in ("_reconstruct", "scalar", "ndarray", "dtype")} | {("_codecs", "encode"), ("collections", "OrderedDict")}:  # fmt: skip
            return super().find_class(module, name)
        raise pickle.UnpicklingError(name)


class _WrongChecksum(Exception):
    pass


def _reference_content(file: Path) -> Any:
    head = file.read_bytes()[:16]
    if head[8:9] == b"{":
        import safetensors.torch

        return safetensors.torch.load_file(file)
    if head.startswith(b"PK"):
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip() or ""
            if bad.endswith(".npy") or "/data" in bad:  # torch's other parts decide nothing
                raise _WrongChecksum
            if all(name.endswith(".npy") for name in archive.namelist()):
                with np.load(file) as arrays:
                    return dict(arrays)
            # torch compares no checksums, and finds parts in its own way: it gets them as zipfile does.
            parts = io.BytesIO()
            with zipfile.ZipFile(parts, "w") as whole:
                for name in archive.namelist():
                    whole.writestr(name, archive.read(name))
        return torch.load(io.BytesIO(parts.getvalue()), weights_only=True, map_location="cpu")
    elif head.startswith(b"\x93NUMPY"):
        return np.load(file, allow_pickle=False)
    elif not head.startswith(b"\x80\x02\x8a\x0al\xfc\x9c"):
        return _Plain(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    return torch.load(file, weights_only=True, map_location="cpu")


def same_tensors(file: Path, printed: str) -> str | None:
    """Whether every tensor that the suite reads is one that the format's own library reads."""
    from backbones.weights.files import read_tensors

    child = os.fork()  # a forged file may crash the libraries, not us
    if child == 0:
        signal.alarm(20)  # a lock that a thread held while this process was forked stays held
        code = 0
        with contextlib.suppress(Exception):
            try:
                theirs = {array.tobytes() for array in _arrays(_reference_content(file))}
            except _WrongChecksum:
                code = 3
            else:
                ours = {array.tobytes() for array in _arrays(dict(read_tensors(file).tensors))}
                code = 2 if ours - theirs else 0
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    reasons = {
        2: "holds other numbers than its own library reads",
        3: "a wrong checksum is accepted",
    }
    return reasons.get(code)


def same_boxes(file: Path, printed: str) -> str | None:
    """Whether pycocotools gives the same twelve numbers of the same two files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(file.parent / "gt.json"))
            for row in truth.dataset["annotations"]:
                row.setdefault("area", row["bbox"][2] * row["bbox"][3])
                row.setdefault("iscrowd", 0)
                if type(row["id"]) is not int or row["id"] < 1 or row["iscrowd"] not in (0, 1):
                    return None  # where pycocotools itself goes wrong
            evaluation = COCOeval(truth, truth.loadRes(str(file.parent / "dt.json")), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    except Exception:
        return None
    ours = list(json.loads(printed)["metrics"].values())
    theirs = [None if value < 0 else 100 * value for value in evaluation.stats]
    if all(
        (a is None) == (b is None) and (a is None or abs(a - b) < 1e-9)
        for a, b in zip(ours, theirs, strict=True)
    ):
        return None
    return f"pycocotools gives {theirs}, we give {ours}"


def same_pixels(file: Path, printed: str) -> str | None:
    from classification.images import read_image

    with Image.open(file) as image:
        if image.mode not in ("RGB", "L", "P") or image.getexif().get(274, 1) != 1:
            return None
        theirs = np.asarray(image.convert("RGB"))
    ours = read_image(file).permute(1, 2, 0).numpy()
    return None if np.array_equal(ours, theirs) else "other pixels than PIL's"


def same_list(file: Path, printed: str) -> str | None:
    """Whether the classes of a list's images are those that the list says."""
    found = json.loads(printed)
    encoding = "utf-16" if file.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = file.read_text(encoding, "surrogateescape")
    lines = [line for line in text.split("\n") if line.strip("\r\t ")]
    images = (found.get("dataset") or found).get("images")
    return None if images == len(lines) else f"{images} images of {len(lines)} lines"


def clean_report(file: Path, printed: str) -> str | None:
    """Whether a report is JSON without NaN, and none of the injected markup is in its page."""
    folder = file.parents[2] / "out"
    pages = list(folder.rglob("report.html"))
    if not pages:
        return "there is no page"
    if m.SCRIPT in pages[0].read_text("utf-8"):
        return "markup from a file stands in the page"

    def refuse(name: str) -> None:
        raise ValueError(name)

    json.loads(pages[0].with_suffix(".json").read_text("utf-8"), parse_constant=refuse)
    return None


def same_weights(file: Path, printed: str) -> str | None:
    """A checkpoint that is gone on with gives the weights that the whole one gives."""
    ours, theirs = file.parent, file.parents[2] / "run"
    equal = (ours / "weights.safetensors").read_bytes() == (theirs / "weights.safetensors").read_bytes()  # fmt: skip
    return None if equal else "goes on to other weights than the whole checkpoint does"


# Images ------------------------------------------------------------------------------------------


def mutate_png(data: bytes, rng: Random) -> bytes:
    """Change a chunk, or put one in, with its length and checksum right."""
    if rng.random() < 0.3:
        return m.mutate_bytes(data, rng)
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">L", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    bomb = b"\x78\x9c" + m.bomb(200)
    odd = (
        (b"zTXt", b"Comment\0\0" + bomb), (b"iCCP", b"x\0\0" + bomb), (b"tRNS", b"\0\1\0\1\0\1"), (b"PLTE", b"\0" * 3),
        (b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + bytes([rng.randrange(10)]) + b"\0" * 7), (b"acTL", b"\0\0\0\2\0\0\0\0"),
    )  # fmt: skip
    action = rng.randrange(6)
    if action == 0:
        chunks.insert(1, rng.choice(odd))
    elif action == 1:
        size = rng.choice((1, 2, 31, 5000, 20_000, 200_000, 2**31 - 1, 0))
        chunks[0] = (b"IHDR", struct.pack(">L", size) + rng.choice((chunks[0][1][4:], struct.pack(">L", size) + chunks[0][1][8:])))  # fmt: skip
    elif action == 2:
        head = bytearray(chunks[0][1])
        head[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = (b"IHDR", bytes(head))
    elif action == 3:
        place = rng.randrange(1, len(chunks))
        chunks[place] = (chunks[place][0], m.mutate_bytes(chunks[place][1], rng))
    elif action == 4:
        del chunks[rng.randrange(len(chunks))]
    else:
        chunks = [(name, bomb if name == b"IDAT" else content) for name, content in chunks]
    return data[:8] + b"".join(
        struct.pack(">L", len(c)) + name + c + struct.pack(">L", zlib.crc32(name + c))
        for name, c in chunks
    )


def mutate_jpeg(data: bytes, rng: Random) -> bytes:
    """Bytes; or sizes in the frame header, an EXIF orientation, other letters in a marker."""
    action = rng.randrange(6)
    frame = data.index(b"\xff\xc0")
    if action == 0:
        size = struct.pack(">HH", rng.choice((0, 1, 31, 33, 65535)), rng.choice((0, 1, 48, 65535)))
        return data[: frame + 5] + size + data[frame + 9 :]
    if action == 1:
        exif = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + bytes([rng.randrange(10)]) + b"\0" * 7  # fmt: skip
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    if action == 2:
        return data[: rng.randrange(len(data))] + b"\xff\xd9"  # cut, with its end put back
    return m.mutate_bytes(data, rng)


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """Bytes, a leaf of the header, or of the metadata inside it."""
    if rng.random() < 0.25:
        return m.mutate_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    told = header.get("__metadata__", {})
    if "sebench" in told and rng.random() < 0.6:
        told["sebench"] = m.mutate_json(told["sebench"].encode(), rng).decode("latin1")
    else:
        header = m.mutate_tree(header, rng)
    text = m.deepen(json.dumps(header)).encode()
    length = len(text) if rng.random() < 0.95 else rng.choice((0, 1, 2**40, 2**63, 2**64 - 1))
    return length.to_bytes(8, "little") + text + body


def mutate_npy(data: bytes, rng: Random) -> bytes:
    """Bytes, or one value of the header's dictionary."""
    if rng.random() < 0.4:
        return m.mutate_bytes(data, rng)
    end = 10 + int.from_bytes(data[8:10], "little")
    odd_types = ("'O'", "'<f4'", "'|V8'", "'<U9'", "'S3'", "'M8[s]'", "'>c16'", "[('a','<f4'),('b','O')]", "[]", "'f4,f4'", "None", "object", "'<f99'", "(" * 500)  # fmt: skip
    odd_shapes = ("()", "(-1,)", "(10**12,)", "(1000000000000,)", "(2,0)", "(0,)", "[8]", "(True,)", "8", "(1.5,)", "(8,)*9", "(4611686018427387904,4)")  # fmt: skip
    header = "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}".format(
        rng.choice(odd_types), rng.choice(("False", "True", "1", "None", "__import__('os')")), rng.choice(odd_shapes)
    )  # fmt: skip
    text = header.encode().ljust(118) + b"\n"
    return data[:8] + len(text).to_bytes(2, "little") + text + data[end:]


def mutate_parquet(data: bytes, rng: Random) -> bytes:
    """Bytes, or a whole file whose columns are of other types, names and values."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if rng.random() < 0.5:
        return m.mutate_bytes(data, rng)
    table = parquet.read_table(io.BytesIO(data))
    name = rng.choice(table.column_names)
    at, rows = table.column_names.index(name), len(table)
    odd: list[Any] = [None, 1, -1, 2**40, 0.5, float("nan"), "text", [1], [None], [[1]], {"a": 1}, True, b"x", [], "x" * 1000, SCRIPT_LIST]  # fmt: skip
    values = [rng.choice(odd)] * rows
    if rng.random() < 0.5:
        values = table.column(name).to_pylist()
        value = m.odd_value(values[0], rng)
        values[rng.randrange(rows)] = value
    action = rng.randrange(4)
    with contextlib.suppress(Exception):  # not every list is a column
        if action == 0:
            table = table.drop_columns([name])
        elif action == 1:
            table = table.slice(0, rng.choice((0, 1, rows - 1)))
        else:
            table = table.set_column(at, name, pa.array(values))
    out = io.BytesIO()
    parquet.write_table(table, out)
    return out.getvalue()


SCRIPT_LIST = [m.SCRIPT]


def mutate_mat(data: bytes, rng: Random) -> bytes:
    """Bytes, or a struct with other fields and values."""
    from scipy.io import loadmat, savemat

    if rng.random() < 0.6:
        return m.mutate_bytes(data, rng)
    synsets = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
    rows = synsets.copy()
    field = rng.choice(rows.dtype.names)
    value = rng.choice((-1, 0, 0.5, "text", "", np.zeros((2, 2)), np.nan, 2**40, "n01440764"))
    rows[field][rng.randrange(len(rows))] = value
    content = rng.choice(({"synsets": rows}, {"synsets": rows}, {"other": rows}, {"synsets": 1}, {"synsets": rows[:1]}, {"synsets": rows[["WNID"]]}))  # fmt: skip
    out = io.BytesIO()
    savemat(out, content)
    return out.getvalue()


def _imports(mutate: m.Mutation) -> m.Mutation:
    """As `mutate`, and at times the settings ask for a file of code."""

    def mutated(data: bytes, rng: Random) -> bytes:
        if rng.random() < 0.1:
            return data.replace(b"imports: []", f"imports: [{m.EVIL}]".encode())
        return mutate(data, rng)

    return mutated


def _zip_of_pickle(data: bytes, rng: Random) -> bytes:
    return m.mutate_zip(data, rng, m.mutate_pickle)


def _bundle(data: bytes, rng: Random) -> bytes:
    def inner(part: bytes, rng: Random) -> bytes:
        return (mutate_parquet if part.startswith(b"PAR1") else m.mutate_json)(part, rng)

    return m.mutate_zip(data, rng, inner)


_INSPECT, _SCORE = "weights inspect {file} --json", "evaluate detection --results {root}/scored/dt.json --annotations {root}/scored/gt.json --json"  # fmt: skip
_REPORT = "report {root}/runs -o {out}"
KINDS: dict[str, Kind] = {
    **{
        f"pickle-{protocol}": Kind(f"weights/pickle-{protocol}.pkl", m.mutate_pickle, _INSPECT, oracle=same_tensors, share=4)
        for protocol in range(6)
    },
    "torch-zip": Kind("weights/zip.pth", _zip_of_pickle, _INSPECT, oracle=same_tensors, share=8),
    "torch-legacy": Kind("weights/legacy.pth", m.mutate_pickle, _INSPECT, oracle=same_tensors, share=8),
    "detectron2": Kind("weights/detectron2.pkl", m.mutate_pickle, _INSPECT, oracle=same_tensors, share=4),
    "npz": Kind("weights/arrays.npz", lambda d, r: m.mutate_zip(d, r, mutate_npy), _INSPECT, oracle=same_tensors, share=4),
    "npy": Kind("weights/caffe.npy", mutate_npy, _INSPECT, oracle=same_tensors, share=4),
    "npy-object": Kind("weights/caffe.npy", lambda d, r: d[:128] + m.mutate_pickle(d[128:], r), _INSPECT, share=2),
    "safetensors": Kind("weights/plain.safetensors", mutate_safetensors, _INSPECT, oracle=same_tensors, share=6),
    "own-weights": Kind("run/weights.safetensors", mutate_safetensors, _INSPECT, oracle=same_tensors, share=2),
    "own-weights-evaluated": Kind("run/weights.safetensors", mutate_safetensors, "evaluate classification -w {file} --dry-run --json", share=1),
    "detector-weights": Kind("detector/weights.safetensors", mutate_safetensors, "evaluate detection -w {file} --dry-run --json", share=1),
    "checkpoint": Kind("run/checkpoint.pt", _zip_of_pickle, f"{RUN} -o {{out}}/run --resume", oracle=same_weights, share=0.5, copied="run"),
    "cifar": _trained("cifar/cifar-10-batches-py/test_batch", m.mutate_pickle, CIFAR, share=2),
    "cifar-train": _trained("cifar/cifar-10-batches-py/data_batch_2", m.mutate_pickle, CIFAR, share=1),
    "cifar-names": _trained("cifar/cifar-10-batches-py/batches.meta", m.mutate_pickle, CIFAR, share=1),
    "idx": _trained("fashion/t10k-images-idx3-ubyte", m.mutate_bytes, FASHION, share=1),
    "idx-gz": _trained("fashion/train-images-idx3-ubyte.gz", m.mutate_gzip, FASHION, share=1),
    "idx-labels": _trained("fashion/t10k-labels-idx1-ubyte", m.mutate_bytes, FASHION, share=1),
    "places-categories": _trained("places/categories_places365.txt", m.mutate_lines, PLACES, share=1),
    "places-train": _trained("places/places365_train_standard.txt", m.mutate_lines, PLACES, share=1),
    "places-val": _trained("places/places365_val.txt", m.mutate_lines, PLACES, same_list, share=1),
    "imagenet-list": _trained("imagenet/meta/val.txt", m.mutate_lines, IMAGENET, same_list, share=1),
    "imagenet-truth": Kind("flat/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", m.mutate_lines, IMAGENET.replace("/imagenet", "/flat") + DRY, share=1),
    "imagenet-mat": Kind("flat/ILSVRC2012_devkit_t12/data/meta.mat", mutate_mat, IMAGENET.replace("/imagenet", "/flat") + DRY, share=2),
    "image-list": Kind("images.txt", m.mutate_lines, IMAGENET + " evaluate.images={file}" + DRY, share=1),
    "jpeg": _trained("folder/train/a/0.jpg", mutate_jpeg, FOLDER, same_pixels, share=2),
    "png": _trained("folder/train/b/1.png", mutate_png, FOLDER, same_pixels, share=2),
    "png-16": _trained("folder/train/a/1.png", mutate_png, FOLDER, share=1),
    "tiff": _trained("folder/train/b/2.tif", m.mutate_bytes, FOLDER, same_pixels, share=1),
    "webp": _trained("folder/train/a/2.webp", m.mutate_bytes, FOLDER, same_pixels, share=1),
    "bmp": _trained("folder/val/b/0.bmp", m.mutate_bytes, FOLDER, same_pixels, share=1),
    "coco-train": _trained("coco/annotations/instances_train2017.json", m.mutate_json, COCO, share=3),
    "coco-val": _trained("coco/annotations/instances_val2017.json", m.mutate_json, COCO, share=3),
    "coco-image": _trained("coco/train2017/0.jpg", mutate_jpeg, COCO, share=1),
    "scored-truth": Kind("scored/gt.json", m.mutate_json, _SCORE, oracle=same_boxes, share=8),
    "scored-results": Kind("scored/dt.json", m.mutate_json, _SCORE, oracle=same_boxes, share=8),
    "record": Kind("runs/se/record.json", m.mutate_json, _REPORT, oracle=clean_report, share=1),
    "costs": Kind("runs/se/networks.cost.json", m.mutate_json, _REPORT, oracle=clean_report, share=0.5),
    "samples": Kind("runs/se/samples.parquet", mutate_parquet, _REPORT, oracle=clean_report, share=0.7),
    "curve": Kind("runs/se/curve.jsonl", m.mutate_bytes, _REPORT, oracle=clean_report, share=0.5),
    "detections": Kind("detectors/se/detections.json", m.mutate_json, "report {root}/detectors -o {out}", oracle=clean_report, share=0.5),
    "detector-record": Kind("detectors/se/record.json", m.mutate_json, "report {root}/detectors -o {out}", oracle=clean_report, share=0.5),
    "bundle": Kind("bundles/of/study.zip", _bundle, "report {file} -o {out}", oracle=clean_report, share=1),
    "bundle-verified": Kind("bundles/of/detector.zip", _bundle, "verify {file} --json", share=1),
    "recipe": Kind("recipe.yaml", _imports(m.mutate_yaml), CIFAR.replace("cifar-short", "{file}") + DRY, share=4),
    "detection-recipe": Kind("detection.yaml", _imports(m.mutate_yaml), COCO.replace("-r tiny", "-r {file}") + DRY, share=3),
    "settings": Kind("run/settings.yaml", _imports(m.mutate_yaml), "evaluate classification -w {root}/run/weights.safetensors --dry-run --json", share=2),
    "study": Kind("study.yaml", _imports(m.mutate_yaml), "run {file} -o {out} --dry-run", share=2),
    "plan-of-study": Kind("status/cells.json", m.mutate_json, "status {root}/status", share=1),
    "heartbeat": Kind("status/a/b-seed0/heartbeat.json", m.mutate_json, "status {root}/status", share=1),
    "failure": Kind("status/logs/a-c-seed0.failure.json", m.mutate_json, "status {root}/status --json", share=0.5),
}  # fmt: skip


# Whole files -------------------------------------------------------------------------------------

_TINY_NETWORK = """
from torch import nn
from backbones import Backbone, FeatureSpec, register_backbone

class Tiny(Backbone):
    feature_specs = {name: FeatureSpec(8, 2) for name in ("stem", "res2", "res3", "res4", "res5")}
    feature_specs = {f"{n}": FeatureSpec(8, 2 ** (i + 1)) for i, n in enumerate(feature_specs)}

    def __init__(self):
        super().__init__()
        for index, name in enumerate(self.feature_specs):
            conv = nn.Conv2d(8 if index else 3, 8, 3, stride=2, padding=1, bias=False)
            self.add_module(name, nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU()))

register_backbone("resnet8_for_tests", Tiny, family="mine")
"""
_STUDY = """
seeds: [0, 1]
include: ["*"]
exclude: ["first-a/resnet20-seed3"]
overrides: {"first-a/*": {train: {epochs: 1}}}
needs: {gpus: 0, cores: 2}
twins: true
imports: []
sample_data: {cifar10: {train_per_class: 5, test_per_class: 2}}
experiments:
  - name: first
    task: classification
    recipe: cifar-short
    backbones: [se_resnet20, {name: resnet20, options: {}}]
    sample: cifar10
    settings: {train: {epochs: 1, batch_size: 10}, data: {workers: 0}}
    variants: {a: {train: {batch_size: 5}}}
    seeds: [3]
  - task: detection
    recipe: tiny
    backbones: [se_resnet_tiny]
    data_root: ROOT/coco
    settings: {train: {batch_size: 2}}
"""


def _write_status(root: Path) -> None:
    """The folder of a study of which a cell runs and another has failed."""
    needs = {"gpus": 1, "cores": None, "memory_gb": 2.5}
    cell = {"number": 0, "name": "a/b-seed0", "task": "scene", "backbone": "b", "seed": 0}
    cells = [{**cell, "waits_for": None, "needs": needs}]
    cells.append({**cells[0], "number": 1, "name": "a/c-seed0", "waits_for": 0})
    beat = {"stage": "training", "step": 3, "total": 9, "images_per_second": 2.5}
    beat |= {"seconds_left": 7.5, "written": 1.7e9, "pid": 4_000_000, "host": "here"}
    (root / "a" / "b-seed0").mkdir(parents=True)
    (root / "logs").mkdir()
    for name, content in (("cells", cells), ("a/b-seed0/heartbeat", beat)):
        (root / f"{name}.json").write_text(json.dumps(content))
    failure = {"error": "why", "can_pass": False}
    (root / "logs" / "a-c-seed0.failure.json").write_text(json.dumps(failure))


def write_templates(root: Path) -> None:
    """Write one whole file of every kind, and what lies around it."""
    from tests.written_runs import write_classifier, write_coco, write_detector
    from tools import sample_data as made
    from tools.experiments.experiment import list_recipes, load_experiment

    made.make_cifar10(root / "cifar", train_per_class=5, test_per_class=2)
    made.make_fashion_mnist(root / "fashion", train_per_class=4, test_per_class=2)
    import gzip

    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        zipped = root / "fashion" / f"{name}.gz"
        (root / "fashion" / name).write_bytes(gzip.decompress(zipped.read_bytes()))
        zipped.unlink()
    sizes = {"train_per_class": 4, "val_per_class": 2, "size": 48}
    made.make_imagenet(root / "flat", classes=3, flat_val=True, **sizes)
    made.make_imagenet(root / "imagenet", classes=3, flat_val=True, **sizes)
    shutil.rmtree(root / "imagenet" / "ILSVRC2012_devkit_t12")
    (root / "imagenet" / "meta").mkdir()
    names = sorted(path.name for path in (root / "imagenet" / "val").iterdir())
    lines = "".join(f"{name} {index % 3}\n" for index, name in enumerate(names))
    (root / "imagenet" / "meta" / "val.txt").write_text(lines)
    (root / "images.txt").write_text("\n".join(names[:4]) + "\n")
    made.make_places365(root / "places", classes=4, **sizes)
    made.make_coco(root / "coco", train=4, val=3, size=64)
    _name_first_image(root / "coco")
    annotations = write_coco(root / "scored-set")
    (root / "scored").mkdir()
    shutil.copy(annotations, root / "scored" / "gt.json")
    for name, network, shift in (("plain", "resnet_tiny", 1.0), ("se", "se_resnet_tiny", 4.0)):
        write_detector(root / "detectors" / name, network, annotations, shift=shift)
        write_classifier(root / "runs" / name, network.replace("_tiny", "20"))
    shutil.copy(root / "detectors" / "se" / "detections.json", root / "scored" / "dt.json")
    run(
        f"measure resnet20 se_resnet20 --rounds 7 --batch-size 1 -o {root}/runs/se/networks.cost.json"
    )
    run(f"bundle {root}/runs {root}/detectors -o {root}/bundles/of/study.zip")
    (root / "tiny.py").write_text(_TINY_NETWORK)
    Path(m.EVIL).write_text(f"open({m.CANARY!r}, 'w')\n")
    (root / "study.yaml").write_text(_STUDY.replace("ROOT", str(root)))
    _write_status(root / "status")
    for task, recipe, file in (("classification", "cifar-short", "recipe"), ("detection", "tiny", "detection")):  # fmt: skip
        settings = load_experiment(task, recipe).settings
        assert recipe in list_recipes(task)
        import yaml

        text = yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False)
        (root / f"{file}.yaml").write_text(text)
    _write_folder(root / "folder")
    _write_weights(root / "weights")
    # A run that is killed before it is recorded, which would take its checkpoint away.
    with (
        patch(
            "tools.experiments.run.write_record", side_effect=ValueError("ended before the record")
        ),
        contextlib.suppress(RuntimeError),
    ):
        run(f"{RUN} -o {root}/run".format(root=root))
    run(f"{COCO} -o {root}/detector".format(root=root))
    run(f"bundle {root}/detector -o {root}/bundles/of/detector.zip")


def run(command: str) -> None:
    """Run a command line that must succeed."""
    from tools import cli

    sys.argv = ["sebench", *command.split()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"sebench {command} does not work on whole files") from None


def _name_first_image(root: Path) -> None:
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    row = content["images"][0]
    (root / "train2017" / row["file_name"]).rename(root / "train2017" / "0.jpg")
    row["file_name"] = "0.jpg"
    file.write_text(json.dumps(content))


def _write_folder(root: Path) -> None:
    rng = np.random.default_rng(0)
    endings = {"train": ("jpg", "png", "webp", "png"), "val": ("bmp", "jpg")}
    for split, names in endings.items():
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for index, ending in enumerate(names):
                pixels = rng.integers(0, 255, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{index}.{ending}")
    deep = Image.fromarray(rng.integers(0, 65535, (40, 48)).astype(np.uint16))
    deep.save(root / "train" / "a" / "1.png")
    Image.fromarray(rng.integers(0, 255, (40, 48), np.uint8)).save(root / "train" / "b" / "2.tif")
    (root / "train" / "b" / "2.webp").unlink()


def _write_weights(root: Path) -> None:
    import safetensors.numpy

    root.mkdir()
    rng = np.random.default_rng(0)
    shapes = {"conv1.weight": (4, 3, 3, 3), "bn1.weight": (4,), "bn1.bias": (4,), "layer1.0.conv1.weight": (4, 4, 1, 1), "fc.weight": (5, 4), "fc.bias": (5,)}  # fmt: skip
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for protocol in range(6):
        content = {"model": arrays, "epoch": 3, "best": np.float64(76.1), "names": ["a", "b"]}
        (root / f"pickle-{protocol}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    checkpoint = {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {0: {"step": tensors["bn1.bias"]}}, "lr": 0.1}}  # fmt: skip
    torch.save(checkpoint, root / "zip.pth")
    torch.save(checkpoint, root / "legacy.pth", _use_new_zipfile_serialization=False)
    blobs = {"model": {"stem.conv1.weight": arrays["conv1.weight"], "res2.0.conv1.weight": arrays["fc.weight"]}, "__author__": "x", "matching_heuristics": True}  # fmt: skip
    (root / "detectron2.pkl").write_bytes(pickle.dumps(blobs, protocol=2))
    np.savez(root / "arrays.npz", **arrays)
    np.save(root / "caffe.npy", np.array({"conv1": [arrays["fc.weight"], arrays["fc.bias"]]}, dtype=object))  # fmt: skip
    safetensors.numpy.save_file(arrays, root / "plain.safetensors", {"format": "pt"})
