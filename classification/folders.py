"""Looking into the folders and lists of a data set: what is there, what is missing, what it is called."""

import codecs
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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


class Walk:
    """Image files of folders and of what lies in them, sorted; counts the others by suffix."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()

    def images(self, folder: Path) -> list[str]:
        """Paths relative to `folder`; directories are read, no file is touched."""
        return sorted(self._walk(str(folder), "", ()))

    def _walk(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
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
                    yield from self._walk(entry.path, f"{prefix}{name}/", (*above, here))
                else:
                    self.left_out[os.path.splitext(name)[1] or "no suffix"] += 1

    def report(self, folder: Path) -> None:
        """Log what was left out."""
        if self.left_out:
            counts = [f"{count} of {suffix}" for suffix, count in self.left_out.most_common()]
            logger.warning(
                "%s: %d files are no images by their names and left out (%s); images are %s",
                folder,
                self.left_out.total(),
                some(counts),
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
    walk = Walk()
    for label, class_name in enumerate(classes):
        directory = folder / class_name
        if not directory.is_dir():
            continue
        images = walk.images(directory)
        if not images:
            others = f", only files of {some(walk.left_out)}" if walk.left_out else ""
            raise ValueError(
                f"{printable(str(directory))} holds no image{others}: fill it (images are "
                f"{' '.join(IMAGE_SUFFIXES)}) or remove the folder"
            )
        ids += [f"{class_name}/{image}" for image in images]
        labels += [label] * len(images)
    walk.report(folder)
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


def read_labels(path: Path, classes: int) -> tuple[list[str], np.ndarray]:
    """File names and labels, int64, of a list with lines `<file> <label>`.

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
    return names, np.array(labels, np.int64)


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
    contents: dict[str, _Contents | None] = {}

    def look(directory: str) -> "_Contents | None":
        """What is in a directory of that name, where it exists."""
        if directory not in contents:
            parent, _, last = directory.rpartition("/")
            above = look(parent) if directory else None
            found = above.find(last) if above else None if directory else ""
            contents[directory] = None if found is None else _Contents.of(folder, found)
        return contents[directory]

    matched: list[str] = []
    missing: list[str] = []
    for name in names:
        path = name.replace("\\", "/") if "\\" in name and not (folder / name).exists() else name
        path = path.removeprefix("./")
        if path.startswith("/") or path[1:3] == ":/" or (".." in path and ".." in path.split("/")):
            raise ValueError(f"{source} lists {name!r}, which leads out of {folder}")
        directory, _, file = path.rpartition("/")
        inside = look(directory)
        found = inside.find(file) if inside else None
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


class _Contents:
    """The names in a directory, found in any Unicode form."""

    def __init__(self, prefix: str, names: set[str]) -> None:
        self._prefix, self._names = prefix, names
        self._forms: dict[str, str] | None = None

    @classmethod
    def of(cls, folder: Path, directory: str) -> "_Contents | None":
        path = folder / directory
        prefix = f"{directory}/" if directory else ""
        return cls(prefix, set(os.listdir(path))) if path.is_dir() else None

    def find(self, name: str) -> str | None:
        """The path of what is called `name`, relative to the folder that all is about."""
        if name in self._names:
            return self._prefix + name
        if name.isascii():
            return None
        if self._forms is None:
            self._forms = {_form(there): there for there in self._names}
        there = self._forms.get(_form(name))
        return None if there is None else self._prefix + there


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)
