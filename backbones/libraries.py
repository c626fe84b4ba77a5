"""What timm and torchvision have: networks by name, what their weights expect, and the weights."""

import contextlib
import difflib
import functools
import hashlib
import inspect
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.config import InputFormat, first_line
from backbones.offline import is_offline, require_network
from backbones.weights.files import TensorFile

# Networks of timm that are there with SE too, as `se` and the name; weights of a pair share the tag.
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet152d")
_RESNEXTS = ("resnext50_32x4d", "resnext101_32x4d", "resnext101_64x4d", "resnext101_32x8d")


def twin(name: str) -> str | None:
    """Return the plain twin of the same recipe tag, or None where none is known."""
    import timm

    library, model, tag = split_name(name)
    plain = model.removeprefix("se")
    if library != "timm" or plain == model or plain not in (*_RESNETS, *_RESNEXTS):
        return None
    if not tag:
        return f"timm:{plain}"
    return f"timm:{plain}.{tag}" if f"{plain}.{tag}" in timm.list_pretrained(f"{plain}.*") else None


def input_format_of(name: str) -> InputFormat:
    """Return what the pretrained weights of a network expect, from the library's own tables."""
    library, model, tag = split_name(name)
    if library == "timm":
        told = _timm_weights(model, tag).to_dict()
        mean, std, interpolation = told["mean"], told["std"], told["interpolation"]
        size, crop = told["input_size"][-1], told["crop_pct"]
    else:
        transform = _torchvision_weights(model, tag).transforms()
        mean, std = transform.mean, transform.std
        interpolation, size = transform.interpolation.value, transform.crop_size[0]
        crop = size / transform.resize_size[0]
    return InputFormat(
        mean=tuple(round(255 * value, 4) for value in mean),
        std=tuple(round(255 * value, 4) for value in std),
        interpolation=interpolation,
        size=size,
        crop=crop,
    )


def find_cached(name: str) -> tuple[str, bool]:
    """Where a library keeps its weights, for people, and whether they are there; asks no network.

    Raises:
        ValueError: an unknown name, or a network without weights.
    """
    import huggingface_hub

    library, model, tag = split_name(name)
    known = (_timm_weights if library == "timm" else _torchvision_weights)(model, tag)
    if repository := getattr(known, "hf_hub_id", None):
        repository, _, revision = repository.partition("@")
        wanted = known.hf_hub_filename
        files = [wanted] if wanted else ["model.safetensors", "pytorch_model.bin"]
        found = (
            huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
            for file in files
        )
        # Source: huggingface_hub's guide "Understand caching" for the folder's name.
        folder = Path(
            huggingface_hub.constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}"
        )
        return f"{files[0]} in {folder}", any(isinstance(path, str) for path in found)
    if not known.url:
        raise ValueError(f"{name}: {library} has no weights of this network")
    path = Path(
        torch.hub.get_dir(), "checkpoints", Path(urllib.parse.urlsplit(known.url).path).name
    )
    return str(path), path.is_file()


def download(name: str) -> tuple[TensorFile, InputFormat]:
    """Let the library fetch its weights, or take them from its cache.

    Raises:
        ValueError: an unknown name, or no network and nothing in the cache.
    """
    library, model, tag = split_name(name)
    input_format = input_format_of(name)
    where, is_there = find_cached(name)
    if not is_there:
        require_network(f"the weights {name}", where)
    try:
        if library == "timm":
            import timm

            with _no_retries_without_network():
                tagged = f"{model}.{tag}" if tag else model
                tensors = timm.create_model(tagged, pretrained=True).state_dict()
        else:
            weights = _torchvision_weights(model, tag)
            tensors = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # each library, and what it downloads with, has errors of its own
        reason = first_line(error)[:200]
        raise ValueError(
            f"{name}: {library} could not get the weights ({reason}). Without a network, download the"
            " file elsewhere and give its path instead"
        ) from error
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return TensorFile(name, digest.hexdigest(), tensors), input_format


@contextlib.contextmanager
def _no_retries_without_network() -> Iterator[None]:
    """Let the Hub's client look into its cache only, offline or where its host has no address.

    It would try for a minute otherwise. It reads HF_HUB_OFFLINE once, when it is imported, so the
    constant is set; were that renamed, a missing network would only take longer to be noticed.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        if is_offline():
            constants.HF_HUB_OFFLINE = True
        elif not urllib.request.getproxies():
            socket.getaddrinfo(urllib.parse.urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def build_model(name: str, options: dict[str, Any], num_classes: int = 1000) -> nn.Module:
    """Build a library's network with random weights, on the device that torch is set to."""
    try:
        try:
            return _construct(name, options, num_classes)
        except NotImplementedError:
            if torch.get_default_device().type != "meta":
                raise
            with torch.device("cpu"):  # torchvision's RegNets compute widths with tensors
                model = _construct(name, options, num_classes)
            return model.to("meta")
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} with options {options}: {error}") from error


def _construct(name: str, options: dict[str, Any], num_classes: int) -> nn.Module:
    library, model, tag = split_name(name)
    if library == "timm":
        import timm

        # The rate is given: timm's legacy SE networks would train with 0.2 otherwise.
        options = {"drop_rate": 0.0, **options}
        tagged = f"{model}.{tag}" if tag else model
        return timm.create_model(tagged, num_classes=num_classes, **options)
    import torchvision.models

    if "init_weights" in inspect.signature(torchvision.models.get_model_builder(model)).parameters:
        options = {"init_weights": False, **options}
    return torchvision.models.get_model(model, weights=None, num_classes=num_classes, **options)


def _timm_weights(model: str, tag: str) -> Any:
    import timm

    known = timm.get_pretrained_cfg(model + (f".{tag}" if tag else ""))
    assert known is not None, model  # split_name found it
    return known


def _torchvision_weights(model: str, tag: str) -> Any:
    import torchvision.models

    weights = torchvision.models.get_model_weights(model)
    if not tag:
        return weights.DEFAULT
    if tag not in weights.__members__:
        raise ValueError(
            f"torchvision:{model} has no weights {tag!r}; it has {', '.join(weights.__members__)}"
        )
    return weights[tag]


@functools.cache
def split_name(name: str) -> tuple[str, str, str]:
    """Split `LIBRARY:NAME[.TAG]` and make sure that the library has it."""
    library, _, rest = name.partition(":")
    model, _, tag = rest.partition(".")
    if library == "timm":
        import timm

        names, tags = (
            timm.list_models(),
            [n.partition(".")[2] for n in timm.list_pretrained(f"{model}.*")],
        )
    else:
        import torchvision.models

        names, tags = torchvision.models.list_models(torchvision.models), []
        if model in names:
            tags = list(torchvision.models.get_model_weights(model).__members__)
    if model not in names:
        near = difflib.get_close_matches(model, names, n=3)
        hint = f"; did you mean {', '.join(f'{library}:{n}' for n in near)}?" if near else ""
        raise ValueError(f"{library} has no network {model!r}{hint}")
    if tag and tag not in tags:
        raise ValueError(
            f"{library}:{model} has no weights tagged {tag!r}; it has {', '.join(tags) or 'none'}"
        )
    return library, model, tag
