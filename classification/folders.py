"""Looking into the folders and lists of a data set: what is there, what is missing, what it is called."""

import codecs
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backbones.config import printable
from classification.config import DataSettings
from classification.datasets import ImageFiles, Names

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
LARGEST_LIST = 2**30  # bytes
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


# What is there -------------------------------------------------------------------------------------


def require(path: Path, what: str) -> Path:
    """Return `path`, or raise a ValueError that says what was looked for and what is there."""
    if path.exists():
        return path
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    there = sorted(n for n in os.listdir(parent) if n[0] != ".") if parent.is_dir() else []
    archives = [name for name in there if name.lower().endswith(ARCHIVES)]
    hint = f"; unpack {some(archives)} there first" if archives else ""
    raise ValueError(
        f"{what} not found: looked for {path}; {parent} holds {some(there, 8) or 'nothing'}{hint}"
    )


def require_root(settings: DataSettings) -> Path:
    """The folder that `data.root` names.

    Raises:
        ValueError: it is not set, does not exist or is no folder.
    """
    if not settings.root:
        raise ValueError(f"data.root is not set: say where {settings.name} lies, data.root=FOLDER")
    root = require(
        Path(os.path.expanduser(settings.root)),
        f"data.root={settings.root}, the folder of {settings.name},",
    )
    if not root.is_dir():
        raise ValueError(f"data.root={settings.root} is no folder: unpack it, and name its folder")
    return root


def find_folder(root: Path, names: Sequence[str], what: str) -> Path:
    """The first of `names` that is a folder in `root`.

    Raises:
        ValueError: none is.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    return require(root / names[0], f"{what} ({' or '.join(names)})")


def list_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_classes(folder: Path) -> list[str]:
    """Names of the class folders in the order of their labels: as text, but whole numbers by value.

    So 10 stands after 9, as timm sorts them too; torchvision's ImageFolder has it after 1.
    """
    names = list_folders(folder)
    if names and all(name.isascii() and name.isdecimal() for name in names):
        by_value = sorted(names, key=lambda name: (int(name), name))
        if by_value != names:
            logger.warning(
                "%s: classes are ordered by the value of their folder's number; weights without "
                "class names that were trained on torchvision's ImageFolder expect the order of text",
                folder,
            )
        return by_value
    return names


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first few of `names` and how many more there are, for messages."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(printable(name) for name in names[:shown]) + more


def find_images(folder: Path, left_out: Counter[str]) -> list[str]:
    """Image files in `folder`, however deep, sorted, relative to it; no file is touched.

    Args:
        left_out: counts the other files, by suffix.
    """
    return sorted(_walk(str(folder), "", (), left_out))


def _walk(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...], left_out: Counter[str]
) -> Iterator[str]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return  # a link to a folder that it lies in
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield prefix + name
            elif entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{name}/", (*above, here), left_out)
            else:
                left_out[os.path.splitext(name)[1] or "no suffix"] += 1


def report_left_out(folder: Path, left_out: Counter[str]) -> None:
    """Log which files of `folder` are no images."""
    if left_out:
        logger.warning(
            "%s: %d files are no images by their names and left out (%s); images are %s",
            folder,
            left_out.total(),
            some(f"{count} of {suffix}" for suffix, count in left_out.most_common()),
            " ".join(IMAGE_SUFFIXES),
        )


def read_class_folders(
    name: str, split: str, root: Path, folder: Path, classes: Sequence[str]
) -> ImageFiles:
    """Read the images of `folder/<class>/`, however deep, for each of `classes`.

    The label is the place in `classes`; classes without a folder have no images.

    Raises:
        ValueError: a class folder holds no image.
    """
    ids: list[str] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    for label, class_name in enumerate(classes):
        directory = folder / class_name
        if not directory.is_dir():
            continue
        images = find_images(directory, left_out)
        if not images:
            others = f", only files of {some(left_out)}" if left_out else ""
            raise ValueError(
                f"{printable(str(directory))} holds no image{others}: fill it (images are "
                f"{' '.join(IMAGE_SUFFIXES)}) or remove the folder"
            )
        ids += [f"{class_name}/{image}" for image in images]
        labels += [label] * len(images)
    report_left_out(folder, left_out)
    shown = [printable(class_name) for class_name in classes]
    return ImageFiles(name, split, Names(ids), np.array(labels, np.int64), shown, root, folder)


# What a list says ----------------------------------------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """Lines of a text file in UTF-8 or, with its mark, UTF-16; empty ones are left out.

    Names that are not UTF-8 keep their bytes, as `os.listdir` gives them.

    Raises:
        ValueError: it is not text, or too large.
    """
    if path.stat().st_size > LARGEST_LIST:
        raise ValueError(f"{path} is larger than {LARGEST_LIST} bytes, which no list is")
    content = path.read_bytes()
    encoding = "utf-8"
    for mark, marked in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            content, encoding = content[len(mark) :], marked
    try:
        errors = "surrogateescape" if encoding == "utf-8" else "strict"
        text = content.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not {encoding.upper()}: {error.reason}") from None
    if "\0" in text:
        raise ValueError(f"{path} is no text: it has zero bytes; save it as UTF-8")
    # Not splitlines: it would also split names at characters that few know to be line ends.
    return [line for line in (line.rstrip("\r\t ") for line in text.split("\n")) if line]


@dataclass(frozen=True)
class Listed:
    """What a file at `path` says of images: their names, and for each its label, int64."""

    path: Path
    names: Sequence[str]
    labels: np.ndarray


def read_listed(
    name: str, split: str, root: Path, folder: Path, classes: Sequence[str], listed: Listed
) -> ImageFiles:
    """The listed images of `folder`.

    Raises:
        ValueError: as `match_listed`.
    """
    names = Names(match_listed(listed.names, folder, listed.path))
    return ImageFiles(name, split, names, listed.labels, classes, root, folder)


def read_labels(path: Path, classes: int) -> Listed:
    """Read a list with lines `<file> <label>`.

    Raises:
        ValueError: a line is another, a label is none of 0 to `classes` - 1, or a file comes twice.
    """
    names, labels = [], []
    for number, line in enumerate(read_lines(path), start=1):
        name, label = [*line.rsplit(None, 1), ""][:2]
        if not is_number(label) or int(label) >= classes:
            allowed = f"'<file> <label 0..{classes - 1}>'"
            raise ValueError(f"{path}, line {number}: {line[:80]!r}, wanted {allowed}")
        names.append(name)
        labels.append(int(label))
    require_unique(names, path)
    return Listed(path, names, np.array(labels, np.int64))


def label_by_name(
    path: Path, names: list[str], labels: list[str], classes: Sequence[str]
) -> Listed:
    """Number the classes that the list at `path` names for its files.

    Raises:
        ValueError: a name is none of `classes`, or a file comes twice.
    """
    require_unique(names, path)
    index_of = {name: index for index, name in enumerate(classes)}
    unknown = sorted(set(labels) - set(index_of))
    if unknown:
        raise ValueError(f"{path}: {some(map(repr, unknown))} are no classes of this set")
    return Listed(path, names, np.array([index_of[label] for label in labels], np.int64))


def require_unique(names: Sequence[str], path: Path) -> None:
    """Raises ValueError where the list at `path` is empty or has a name twice."""
    if not names:
        raise ValueError(f"{path} lists nothing")
    if len(set(names)) != len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise ValueError(f"{path} lists files twice: {some(twice)}; every image counts once")


def is_number(text: str) -> bool:
    """Whether `text` is a whole number of plain digits, and a reasonable one."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def match_listed(names: Iterable[str], folder: Path, source: Path) -> list[str]:
    """The files in `folder` that the list `source` means by `names`: one look into each directory.

    Paths may be Windows's, and names in another Unicode form than the file system's.

    Raises:
        ValueError: naming the files that are not there, or a path that leads out of `folder`.
    """
    contents: dict[str, dict[str, str]] = {}

    def look(directory: str) -> dict[str, str]:
        """Paths of what is in a directory, by their names as they are and as `normal` has them."""
        if directory not in contents:
            parent, _, last = directory.rpartition("/")
            place = find(parent, last) if directory else "."
            is_there = place is not None and (folder / place).is_dir()
            names = os.listdir(folder / str(place)) if is_there else []
            prefix = f"{place}/" if directory else ""
            there = {name: prefix + name for name in names}
            contents[directory] = {normal(name): path for name, path in there.items()} | there
        return contents[directory]

    def find(directory: str, name: str) -> str | None:
        inside = look(directory)
        return inside.get(name) or inside.get(normal(name))

    matched: list[str] = []
    missing: list[str] = []
    for name in names:
        path = name.replace("\\", "/") if "\\" in name and not (folder / name).exists() else name
        path = path.removeprefix("./")
        if path.startswith("/") or path[1:3] == ":/" or (".." in path and ".." in path.split("/")):
            raise ValueError(f"{source} lists {name!r}, which leads out of {folder}")
        directory, _, file = path.rpartition("/")
        found = find(directory, file)
        if found is None:
            missing.append(path)
        else:
            matched.append(found)
    if missing:
        raise ValueError(
            f"{source} lists {len(missing)} files that are not in {folder}: {some(sorted(missing))}"
        )
    require_unique(matched, source)
    return matched


def normal(name: str) -> str:
    """The same text in one Unicode form."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
