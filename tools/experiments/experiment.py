"""Experiments: a task, a recipe and overrides become one typed, frozen, hashed description.

    experiment = load_experiment("classification", "cifar-resnet", ["train.epochs=10", "seed=1"])
    record = run_experiment(experiment, Path("runs/resnet20-1"))

Two experiments are the same when everything that can change the result is the same: that is what
`Experiment.hash` covers. `Experiment.comparison_hash` leaves out backbone and seed as well, so that a
network and its twin share it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from backbones import files
from backbones.config import unknown
from backbones.registry import describe_backbone, load_user_module, twin_of
from tools.experiments.settings import build_settings, parse_override, read_yaml
from tools.experiments.tasks import ACTIONS, TASKS, find_task, settings_class


@dataclass(frozen=True)
class Experiment:
    """What is to be run; nothing of where."""

    task: str  # a key of TASKS
    recipe: str  # name of a shipped recipe, or path of a file; says where settings came from
    config: Any  # the task's frozen settings
    action: str = "train"  # or "evaluate": weights that are there already

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as plain values; an evaluation has none of training's."""
        return {k: v for k, v in dataclasses.asdict(self.config).items() if k not in self._unused}

    @property
    def _unused(self) -> Sequence[str]:
        return TASKS[self.task].training_only if self.action == "evaluate" else ()

    def contents(self) -> dict[str, str]:
        """What stands for files in the identity, by their paths; they are looked at at each call.

        Files that settings name (weights, lists of images) count by their content and synthetic data
        by how they were made, wherever they lie.
        """
        paths = (path for path in named_files(self.config) if Path(path).exists())
        found = {path: f"sha256:{_sha256(path)}" for path in paths}
        root = self.config.data.root
        marker = synthetic_marker(root)
        return found if marker is None else {**found, root: marker}

    def identity(self, contents: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What can change the result, as plain values.

        Args:
            contents: as `contents` gave them; None: those of now.
        """
        known = self.contents() if contents is None else contents
        fields = _identity_fields(self.config, known)
        fields["data"]["synthetic"] = known.get(self.config.data.root)
        used = {key: value for key, value in fields.items() if key not in self._unused}
        return {"task": self.task, "action": self.action, **used}

    @property
    def hash(self) -> str:
        """16 hexadecimal digits; equal for experiments that must give the same result."""
        return _hash(self.identity())

    @property
    def comparison_hash(self) -> str:
        """As `hash`, without backbone and seed: what twins and repetitions have in common."""
        return _comparison_hash(self.identity())

    def entry_points(self) -> Any:
        """The module that checks, trains and evaluates this task; imports torch."""
        return importlib.import_module(TASKS[self.task].module)


def load_experiment(
    task: str,
    recipe: str,
    overrides: Iterable[str] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    action: str = "train",
    imports: Iterable[str | Path] = (),
) -> Experiment:
    """Read a recipe and change it: by ``settings``, then by ``overrides``.

    Options of the network join those of the recipe, of which a plain twin drops what concerns the
    attention of its SE partner.

    Files come from anyone: Python files that a recipe or ``settings`` name in `backbone.imports`
    are not run unless ``imports``, which a person gives, is there; it takes their place.

    Args:
        recipe: the name of a shipped recipe or the path of a YAML file, which may be the
            ``settings.yaml`` of a run.
        overrides: texts as "train.epochs=3".
        settings: nested, as in a recipe.
        action: one of ACTIONS.
        imports: Python files that register networks or attentions; they are run.

    Raises:
        ValueError: anything unknown, with near matches, or of the wrong type, with its full name;
            a file that asks for Python files to be run.
    """
    find_task(task)
    assert action in ACTIONS
    recipe, written = _read_recipe(task, recipe)
    imports = [str(path) for path in imports]
    parts: list[tuple[str, Mapping[str, Any]]] = [("settings", settings or {})]
    for source, part in ((f"recipe {recipe}", written), *parts):
        check_imports(source, _backbone(part).get("imports"), imports)
    for path in imports:
        load_user_module(path)
    if imports:
        parts.append(("--import", {"backbone": {"imports": imports}}))
    parts += [(text, parse_override(text)) for text in overrides]
    named = [_backbone(part).get("name") for _, part in parts]
    fitting = _with_fitting_options(written, next(filter(None, reversed(named)), None))
    return _checked(task, recipe, [(f"recipe {recipe}", fitting), *parts], action)


def _checked(
    task: str, recipe: str, parts: Iterable[tuple[str, Mapping[str, Any]]], action: str
) -> Experiment:
    """An experiment whose settings are sound, and whose networks are known."""
    config = build_settings(settings_class(find_task(task)), parts)
    for path in config.backbone.imports:
        load_user_module(path)
    for name in filter(None, (config.backbone.name, config.backbone.twin)):
        describe_backbone(name)
    return Experiment(task, recipe, config, action)


def results_experiment(
    task: str,
    results: str,
    annotations: str,
    backbone: str,
    overrides: Iterable[str] = (),
    imports: Sequence[str | Path] = (),
) -> Experiment:
    """The evaluation of a file of results that came from somewhere else.

    Args:
        task: one whose row has `score`.
        results: detections, `[{"image_id", "category_id", "bbox", "score"}, ...]`.
        annotations: the ground truth they are scored against.
        backbone: the network that they came from, which the file does not tell.
        overrides: what else is known: seed=N, backbone.options.KEY=VALUE, or evaluate.evaluator.

    Raises:
        ValueError: an override of what a results file leaves unknown.
    """
    named = {"name": backbone, "weights": results, "imports": [str(path) for path in imports]}
    known = {"backbone": named, "data": {"name": "custom", "val_annotations": annotations}}
    parts: list[tuple[str, Mapping[str, Any]]] = [("", known)]
    for text in overrides:
        key = text.partition("=")[0]
        if key not in ("seed", "evaluate.evaluator") and not key.startswith("backbone.options"):
            raise ValueError(
                f"{text}: a results file is scored as it is; only seed, backbone.options and "
                "evaluate.evaluator can be told"
            )
        parts.append((text, parse_override(text)))
    return _checked(task, "unknown (a results file)", parts, "evaluate")


def check_imports(source: str, wanted: object, named: Sequence[str | Path]) -> None:
    """Refuse a file that asks for Python files to be run while a person named none.

    Args:
        source: what to call the file in the message.
        wanted: the value of its key `imports`.
        named: what `--import` named.
    """
    if wanted and not named:
        mend = " ".join(f"--import {path}" for path in _as_list(wanted))
        raise ValueError(
            f"{source} wants Python files to be run; read them, and if you trust them, pass {mend}"
        )


def list_recipes(task: str) -> dict[str, Path]:
    """Names of the shipped recipes of a task and where they lie."""
    folder = Path(str(resources.files(TASKS[task].recipes))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def describe_recipe(path: Path) -> str:
    """The first line of the comment a recipe opens with: what it reproduces."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").strip()


def recipe_cost(path: Path) -> dict[str, Any]:
    """What a recipe's second line says: "# Images: 50,000; epochs: 200; published: 4.27 % ..."."""
    with path.open(encoding="utf-8") as lines:
        header = next(islice(lines, 1, None), "")
    told = dict(re.findall(r"(images|epochs|published): ([^;]*)", header.strip(), re.IGNORECASE))
    told = {key.lower(): value.strip() for key, value in told.items()}
    images, epochs = (told.get(key, "").replace(",", "") for key in ("images", "epochs"))
    return {
        "images": int(images) if images.isdecimal() else None,  # of training
        "epochs": float(epochs) if re.fullmatch(r"\d+(\.\d+)?", epochs) else None,
        "published": told.get("published"),
    }


def synthetic_marker(root: str | None) -> str | None:
    """How the synthetic data in ``root`` were made; None for real data."""
    path = Path(root) / files.SYNTHETIC if root else None
    if path is None or not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(10_000).strip()


# Reading -----------------------------------------------------------------------------------------


def _read_recipe(task: str, recipe: str) -> tuple[str, dict[str, Any]]:
    """What a recipe is called, and its content; settings of a run name the recipe they came from."""
    shipped = list_recipes(task)
    path = shipped.get(recipe)
    if path is None:
        path = Path(recipe)
        if path.suffix not in (".yaml", ".yml"):
            elsewhere = [
                other for other in TASKS if other != task and recipe in list_recipes(other)
            ]
            hint = f" (it is one of {elsewhere[0]})" if elsewhere else ""
            raise ValueError(unknown(f"{task} recipe", recipe, shipped) + hint)
        if not path.is_file():
            raise ValueError(f"recipe {recipe}: no such file")
    content = read_yaml(path)
    if "experiment" in content and "config" in content:
        if content.get("task") != task:
            raise ValueError(f"recipe {recipe}: settings of {content.get('task')}, not of {task}")
        if not isinstance(content["config"], dict):
            raise ValueError(f"recipe {recipe}: its 'config' holds no settings")
        return str(content.get("recipe") or recipe), content["config"]
    return recipe, content


def _with_fitting_options(written: Mapping[str, Any], name: object) -> Mapping[str, Any]:
    """A recipe whose network is replaced by the one called ``name``.

    Options belong to a network: a plain network in the place of a recipe's SE twin keeps those it
    has itself and drops those of the attention.
    """
    backbone = _backbone(written)
    options, own = backbone.get("options"), backbone.get("name")
    if not isinstance(options, Mapping) or not isinstance(own, str) or name in (None, own):
        return written
    twin = twin_of(own, dict(options))
    if twin is None or twin[0] != name:
        return written
    return {**written, "backbone": {**backbone, "options": twin[1]}}


def _backbone(part: Mapping[str, Any]) -> Mapping[str, Any]:
    backbone = part.get("backbone")
    return backbone if isinstance(backbone, Mapping) else {}


# Identity ----------------------------------------------------------------------------------------


def recompute_hashes(
    task: str, action: str, settings: Mapping[str, Any], contents: Mapping[str, str]
) -> tuple[str, str]:
    """`Experiment.hash` and `comparison_hash` of a run, from what its record holds: no file is read.

    Settings that came with a later version are left out, as they were then.

    Raises:
        ValueError: the settings are none of this version.
    """
    config = build_settings(settings_class(find_task(task)), [("its settings", settings)])
    identity = _within(Experiment(task, "", config, action).identity(contents), settings)
    return _hash(identity), _comparison_hash(identity)


def _within(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity whose keys stand in settings, or were never among them."""
    return {
        key: _within(value, settings[key])
        if isinstance(value, dict) and isinstance(settings.get(key), Mapping)
        else value
        for key, value in identity.items()
        if key in settings or key in ("task", "action", "synthetic")
    }


def _identity_fields(settings: Any, contents: Mapping[str, str]) -> dict[str, Any]:
    fields = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        unsaid = field.metadata.get("came_later", False) and value == field.default
        if field.metadata.get("identity", True) and not unsaid:
            if dataclasses.is_dataclass(value):
                value = _identity_fields(value, contents)
            elif field.metadata.get("names_files"):
                # A path where the file does not exist: its name is all that is known.
                known = [contents.get(path, path) for path in _as_list(value)]
                value = known if isinstance(value, list) else known[0]
            fields[field.name] = value
    return fields


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def named_files(settings: Any) -> Iterator[str]:
    """The paths that settings name, those whose content counts."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from named_files(value)
        elif field.metadata.get("names_files"):
            yield from filter(None, _as_list(value))


def _comparison_hash(identity: Mapping[str, Any]) -> str:
    return _hash({k: v for k, v in identity.items() if k not in ("backbone", "seed")})


def _hash(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, allow_nan=False, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sha256(path: str) -> str:
    """The hash of a file, which is read again only when it has changed; or of a folder's weights."""
    if Path(path).is_dir() or path.endswith(".index.json"):
        from backbones.weights.files import sha256_of_weights  # needs torch

        return sha256_of_weights(path)
    state = Path(path).stat()
    return _sha256_of(path, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: str, *state: int) -> str:
    return files.sha256(path)
