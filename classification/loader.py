"""Batches of uint8 images, read by this process or by others that are watched over.

How many read changes nothing in what is read: augmentation depends on the seed of each image alone.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from classification.config import AugmentSettings, DataSettings
from classification.crop_cache import CropCache
from classification.datasets import Batch, ImageArray, ImageFiles
from classification.distributed import Processes
from classification.folders import some
from classification.images import stack
from classification.protocols import Protocol
from classification.transforms import augment_batch, build_train_transform, build_views

_LOOK_EVERY = 10.0  # seconds between looks at processes that are waited for
_PATIENCE = 300.0  # seconds without an image before a file counts as one that never comes
# What a reading process tells of itself: its number, the image it reads, how many it has begun.
_PROCESS, _IMAGE, _BEGUN = range(3)
_NONE = -1


class BadImages:
    """Counts files that cannot be read, and raises when there are more than allowed."""

    def __init__(self, allowed: int, root: object) -> None:
        self.names: set[str] = set()
        self._allowed, self._root = allowed, root

    def add(self, names: Iterable[str]) -> None:
        """Raises ValueError naming the files when more than `allowed` have been met."""
        self.names.update(names)
        if len(self.names) > self._allowed:
            raise ValueError(
                f"{len(self.names)} unreadable images under {self._root}: {some(sorted(self.names))}; "
                f"mend them, or allow more than data.skip_bad_images={self._allowed}"
            )


# Reading -----------------------------------------------------------------------------------------


class _Images(torch.utils.data.Dataset):
    """Opens and transforms single images; an unreadable one is returned by its name.

    It goes to the reading processes as a pickle, and so does all that it holds.
    """

    def __init__(
        self,
        dataset: ImageArray | ImageFiles,
        transform: Callable[[Tensor, int], Tensor],
        progress: Tensor,
    ) -> None:
        self._dataset, self._transform, self.progress = dataset, transform, progress

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int, int] | str:
        index, seed = key
        with self._noted(index):
            try:
                image = self._dataset.image(index)
            except (OSError, ValueError):
                return self._dataset.ids[index]
            return self._transform(image, seed), int(self._dataset.labels[index]), index, seed

    @contextmanager
    def _noted(self, index: int) -> Iterator[None]:
        """Tell the process that waits for batches which image is being read."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        mine = self.progress[worker.id]
        mine[_IMAGE], mine[_BEGUN] = index, mine[_BEGUN] + 1
        yield
        mine[_IMAGE] = _NONE


def _collate(items: list[tuple[Tensor, int, int, int] | str]) -> Batch:
    good = [item for item in items if not isinstance(item, str)]
    bad = [item for item in items if isinstance(item, str)]
    if not good:
        none = torch.empty(0, dtype=torch.int64)
        return Batch(torch.empty(0, 3, 1, 1, dtype=torch.uint8), none, none, none, bad)
    images, labels, indices, seeds = zip(*good, strict=True)
    return Batch(
        stack(list(images)), torch.tensor(labels), torch.tensor(indices), torch.tensor(seeds), bad
    )


def _prepare_worker(_: int) -> None:
    # The signal that asks a run to stop reaches its workers too; the run still needs their batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # DataLoader's own watch compares with the parent of this moment: one that is gone is not missed.
    run = multiprocessing.parent_process()
    if run is not None and not run.is_alive():
        os._exit(1)
    torch.set_num_threads(1)
    worker = get_worker_info()
    assert worker is not None
    assert isinstance(worker.dataset, _Images)
    worker.dataset.progress[worker.id, _PROCESS] = os.getpid()


def _read(
    dataset: ImageArray | ImageFiles,
    transform: Callable[[Tensor, int], Tensor],
    keys: Iterable[list[tuple[int, int]]],
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """A batch for each of `keys`, read by `workers` processes that live as long as the iterator.

    Raises:
        ChildProcessError: a reading process died.
        TimeoutError: the reading processes wait for a file without end.
    """
    if workers < 0:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = min(8, max(1, (os.cpu_count() or 1) // local))
        if isinstance(dataset, ImageArray):
            workers = 0
    if workers and multiprocessing.get_start_method() == "forkserver":
        # Imported once, by the server, and not by every process of every pass.
        multiprocessing.set_forkserver_preload(["__main__", __name__])
    progress = torch.full((workers, 3), _NONE).share_memory_()
    loader = DataLoader(
        _Images(dataset, transform, progress),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_prepare_worker,
        generator=torch.Generator(),  # or it would draw from the generator that training draws from
        pin_memory=device.type == "cuda",
        timeout=_LOOK_EVERY if workers else 0,
    )
    with _keep_handler(signal.SIGCHLD):
        batches = iter(loader)
    try:
        yield from _watched(batches, progress, dataset)
    except BaseException:
        # They heed no other signal, and one that waits for a file would keep this process from ending.
        for process in progress[:, _PROCESS].tolist():
            if process != _NONE:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        raise


def _watched(
    batches: Iterator[Batch], progress: Tensor, dataset: ImageArray | ImageFiles
) -> Iterator[Batch]:
    """The same batches; raises what `_read` says when no more come."""
    before, waits = progress.clone(), 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker (pid" in str(error):
                raise ChildProcessError(_describe_death(str(error), progress, dataset)) from error
            if "DataLoader timed out" not in str(error):
                raise
            waits = waits + 1 if torch.equal(before, progress) else 0
            before = progress.clone()
            if waits * _LOOK_EVERY >= _PATIENCE:
                raise TimeoutError(
                    f"no image was read for {waits * _LOOK_EVERY:.0f} s; the processes that read wait "
                    f"for {_being_read(progress, dataset)}: is the disk or network still there?"
                ) from None
            continue
        waits = 0
        yield batch


@contextmanager
def _keep_handler(number: int) -> Iterator[None]:
    """Leave a signal's handler as it is.

    DataLoader's handler of SIGCHLD would raise in the middle of whatever is being computed; without
    it the death of a worker is noticed when its batch is waited for.
    """
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(number)
    yield
    if handler is not None:
        signal.signal(number, handler)


def _describe_death(message: str, progress: Tensor, dataset: ImageArray | ImageFiles) -> str:
    dead = {int(number) for number in re.findall(r"\d+", message)}
    theirs = progress[[process in dead for process in progress[:, _PROCESS].tolist()]]
    text = "a process that reads images was ended"
    if "Bus error" in message:
        return f"{text}: /dev/shm is full; enlarge it, or lower data.workers"
    reading = _being_read(theirs, dataset)
    at = f" while it read {reading}" if reading else ""
    return f"{text}{at}, perhaps because memory ran out: lower data.workers, or look at that file"


def _being_read(progress: Tensor, dataset: ImageArray | ImageFiles) -> str:
    indices = [index for index in progress[:, _IMAGE].tolist() if index != _NONE]
    folder = f"{dataset.folder}/" if isinstance(dataset, ImageFiles) else ""
    return some([f"{folder}{dataset.ids[index]}" for index in indices])


def train_batches(
    dataset: ImageArray | ImageFiles,
    parts: Iterator[list[tuple[int, int]]],
    data: DataSettings,
    augment: AugmentSettings,
    interpolation: str,
    device: torch.device,
) -> Iterator[Batch]:
    """Augmented batches, one for each of `parts`. Small images in memory go a batch at a time."""
    if not _fits_whole(dataset, augment):
        transform = partial(_augment, build_train_transform(augment, interpolation))
        yield from _read(dataset, transform, parts, data.workers, device)
        return
    images = dataset.images.to(device)
    for part in parts:
        indices, seeds = torch.tensor(part).T
        labels = torch.from_numpy(dataset.labels[indices.numpy()])
        batch = augment_batch(images[indices.to(device)], augment, seeds)
        yield Batch(batch, labels, indices, seeds)


def _augment(transform: Callable[[Tensor], Tensor], image: Tensor, seed: int) -> Tensor:
    """What `transform` makes of `image` with draws from `seed`; the generator is left as it was."""
    # Of the CPU alone: torch.manual_seed would note the call stack for each GPU to come.
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        return transform(image)
    finally:
        generator.set_state(state)


def _fits_whole(
    dataset: ImageArray | ImageFiles, augment: AugmentSettings
) -> TypeGuard[ImageArray]:
    if not isinstance(dataset, ImageArray) or augment.crop == "resized" or augment.policy != "none":
        return False
    return augment.size in (0, dataset.images.shape[-1])


def evaluation_batches(
    dataset: ImageArray | ImageFiles,
    protocol: Protocol,
    batch_size: int,
    processes: Processes,
    workers: int,
    interpolation: str,
    cache: CropCache | None = None,
) -> Iterator[Batch]:
    """Every `processes.count`-th batch, with views (N, V, 3, H, W); nothing is padded or repeated.

    A batch holds the same images whatever the number of processes, so the numbers do too.

    Args:
        cache: read instead of the files where it is whole, built where it is not.
    """
    starts = range(0, len(dataset), batch_size)[processes.rank :: processes.count]
    batches = [range(start, min(start + batch_size, len(dataset))) for start in starts]
    if isinstance(dataset, ImageArray) and protocol.crops == "full":
        for batch in batches:
            views = dataset.images[batch.start : batch.stop][:, None]
            if protocol.flip:
                views = torch.cat([views, views.flip(-1)], dim=1)
            yield _seen(dataset, views, batch)
        return
    is_kept = cache is not None and cache.open()
    if cache is not None and is_kept:
        while batches and (kept := cache.read(batches[0].start, batches[0].stop)) is not None:
            yield _seen(dataset, kept, batches.pop(0))
    if not batches:
        return
    corruption = protocol.corruption
    keys = [
        [(index, corruption.seed(dataset.ids[index]) if corruption else 0) for index in batch]
        for batch in batches
    ]
    transform = build_views(protocol, interpolation)
    read = _read(dataset, transform, keys, workers, processes.device)
    # One that was found damaged is built by the next pass: this one has served a part from it.
    yield from read if cache is None or is_kept else cache.keep(read)


def _seen(dataset: ImageArray | ImageFiles, views: Tensor, batch: range) -> Batch:
    labels = torch.from_numpy(dataset.labels[batch.start : batch.stop])
    indices = torch.arange(batch.start, batch.stop)
    return Batch(views, labels, indices, torch.zeros_like(indices))
