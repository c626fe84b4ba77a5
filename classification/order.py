"""The order in which training sees images: it depends on seed and position alone.

So a run that is resumed in the middle of an epoch, or reads with another number of workers, sees
the same images with the same augmentation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from classification.distributed import Processes


@dataclass(frozen=True)
class SampleOrder:
    """Which image stands where in which epoch.

    'uniform' shuffles the set anew each epoch, and drops what is left over from whole batches.
    'class_aware' goes through a list of the classes, and for each through a list of its images;
    each list is reshuffled when it is used up.

    Source: class-aware sampling, Relay BP (arXiv 1512.05830), which the paper cites as [74].
    """

    labels: np.ndarray
    batch_size: int
    seed: int
    sampling: str = "uniform"

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the set."""
        return len(self.labels) // self.batch_size

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Image indices of epoch `number` and a seed for each place."""
        length = self.steps_per_epoch * self.batch_size
        seeds = np.random.default_rng([self.seed, number, 1]).integers(0, 2**62, length)
        if self.sampling == "uniform":
            order = np.random.default_rng([self.seed, number]).permutation(len(self.labels))
            return order[:length], seeds
        return self._class_aware(number * length, (number + 1) * length), seeds

    def _class_aware(self, start: int, end: int) -> np.ndarray:
        """The images at places `start` to `end` of an endless stream, which places alone decide.

        Every round of the stream goes through all the classes once, so that a class is visited for
        the n-th time in round n, and every pass over its list of images takes as many rounds as it
        has images.
        """
        classes, counts = np.unique(self.labels, return_counts=True)
        members = np.split(np.argsort(self.labels, kind="stable"), np.cumsum(counts)[:-1])
        size = len(classes)
        rounds = range(start // size, -(-end // size))
        shuffled = [
            np.random.default_rng([self.seed, number, 2]).permutation(size) for number in rounds
        ]
        places = np.arange(start, end)
        chosen = np.concatenate(shuffled)[places - rounds.start * size]
        visits = np.split(
            np.argsort(chosen, kind="stable"), np.cumsum(np.bincount(chosen, minlength=size))[:-1]
        )
        indices = np.empty(end - start, np.int64)
        for label, images, here in zip(range(size), members, visits, strict=True):
            visit = places[here] // size
            for number in np.unique(visit // len(images)):
                rng = np.random.default_rng([self.seed, number, 3, label])
                during = visit // len(images) == number
                indices[here[during]] = rng.permutation(images)[visit[during] % len(images)]
        return indices

    def parts(
        self, start_step: int, end_step: int, processes: Processes, accumulate: int
    ) -> Iterator[list[tuple[int, int]]]:
        """(index, seed) pairs of each part of this process's share of each batch."""
        share = self.batch_size // processes.count
        size = share // accumulate
        for step in range(start_step, end_step):
            if step == start_step or step % self.steps_per_epoch == 0:
                order, seeds = self.epoch(step // self.steps_per_epoch)
            first = step % self.steps_per_epoch * self.batch_size + processes.rank * share
            for begin in range(first, first + share, size):
                part = slice(begin, begin + size)
                yield list(zip(order[part].tolist(), seeds[part].tolist(), strict=True))
