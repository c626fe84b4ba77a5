"""Training: one loop, resumable at any step with the weights it would have had without a stop."""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from math import ceil
from pathlib import Path

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from backbones import InputFormat
from classification.checkpoint import (
    StopRequest,
    capture_random_state,
    load_checkpoint,
    restore_random_state,
    save_checkpoint,
    seed_everything,
)
from classification.config import ClassificationConfig
from classification.datasets import ImageArray, ImageFiles
from classification.distributed import Processes
from classification.evaluate import Predictions
from classification.loader import BadImages, Batch, SampleOrder, train_batches
from classification.metrics import count_correct
from classification.monitor import Monitor
from classification.optimizer import Schedule, build_optimizer
from classification.transforms import cut_out, normalize

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Trains `network` on `dataset`; `validate` scores a network for the curve and for choosing.

    Attributes:
        product: the network to evaluate and keep: the averaged one where there is an average.
        best: error in percent and epoch of the best epoch so far, where one is looked for.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: ImageArray | ImageFiles,
        config: ClassificationConfig,
        input_format: InputFormat,
        processes: Processes,
        directory: Path,
        validate: Callable[[nn.Module], Predictions] | None,
        keep: Callable[[nn.Module], None],
    ) -> None:
        train, device = config.train, processes.device
        self._config, self._processes, self._directory = config, processes, directory
        self._dataset, self._input_format = dataset, input_format
        self._dataset_sha256 = dataset.sha256()
        self._validate, self._keep = validate, keep
        self._order = SampleOrder(
            dataset.labels, train.batch_size, config.seed, config.data.sampling
        )
        self.steps_per_epoch = self._order.steps_per_epoch
        self.total_steps = train.iterations or train.epochs * self.steps_per_epoch
        self.step = 0
        self.seconds = 0.0
        self.best: dict[str, float] | None = None

        memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        self._memory_format = memory_format
        self.network = network.to(device, memory_format=memory_format)
        self._optimizer = build_optimizer(self.network, train.optimizer)
        self.schedule = Schedule(
            self._optimizer, train.schedule, self.total_steps, self.steps_per_epoch
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self._parallel: nn.Module = self.network
        if processes.count > 1:
            ids = [device.index] if device.type == "cuda" else None
            self._parallel = DistributedDataParallel(self.network, device_ids=ids)
        # After DDP has given every process the same weights.
        self._ema = ModelEmaV3(self.network, decay=train.ema_decay) if train.ema_decay else None
        self._bad = BadImages(config.data.skip_bad_images, dataset.root)
        self._mix = self._erase = None
        classes, augment = len(dataset.class_names), config.augment
        if augment.mixup or augment.cutmix:
            self._mix = Mixup(
                augment.mixup,
                augment.cutmix,
                label_smoothing=train.label_smoothing,
                num_classes=classes,
            )
        if augment.random_erasing:
            self._erase = RandomErasing(augment.random_erasing, mode="pixel", device=device)
        smoothing = 0.0 if self._mix else train.label_smoothing  # Mixup smooths its own targets
        self._criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        seed_everything(config.seed + processes.rank)

    @property
    def product(self) -> nn.Module:
        return self._ema.module if self._ema is not None else self.network

    # The loop ------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train from the present step to the last.

        Raises:
            ValueError: the loss is not finite, or too many images cannot be read.
            KeyboardInterrupt: SIGTERM or Ctrl-C came; the checkpoint is saved.
        """
        train, processes = self._config.train, self._processes
        parts = self._order.parts(self.step, self.total_steps, processes, train.accumulate)
        batches = train_batches(
            self._dataset,
            parts,
            self._config.data,
            self._config.augment,
            self._input_format.interpolation,
            processes.device,
        )
        monitor = Monitor(self, self._directory, train, processes)
        saved = time.monotonic()
        self._set_mode()
        with StopRequest() as stop, monitor:
            while self.step < self.total_steps:
                if self.step % self.steps_per_epoch == 0:
                    self._set_mode()
                lr = self.schedule.learning_rate
                loss = self._train_step([next(batches) for _ in range(train.accumulate)])
                self.step += 1
                self.schedule.move_to(self.step)
                monitor.note(lr, loss)
                if self.step % self.steps_per_epoch == 0 or self.step == self.total_steps:
                    monitor.flush()
                    self._end_epoch(monitor)
                elif not monitor.is_due and not (stop.asked and processes.count == 1):
                    continue
                monitor.flush()
                due = time.monotonic() - saved >= 60 * train.checkpoint_every
                stopped, due = processes.agree(stop.asked is not None, due)
                if due or stopped or self.step == self.total_steps:
                    self.save()
                    saved = time.monotonic()
                if stopped and self.step < self.total_steps:
                    raise KeyboardInterrupt(
                        f"stopped by {stop.asked or 'another process'} after step {self.step} of "
                        f"{self.total_steps}; {self._directory / CHECKPOINT} is saved, "
                        "--resume goes on from it"
                    )
        if self._bad.names:
            logger.warning("skipped %d unreadable training images", len(self._bad.names))

    def _set_mode(self) -> None:
        """Training mode; in the last epochs, where asked, with the batch statistics frozen."""
        self._parallel.train()
        epochs = ceil(self.total_steps / self.steps_per_epoch)
        frozen = self._config.train.freeze_norms_epochs
        if self.step // self.steps_per_epoch >= epochs - frozen:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _train_step(self, parts: list[Batch]) -> Tensor:
        """One optimiser step on the mean loss over `parts`; returns that loss, detached."""
        train = self._config.train
        total = torch.zeros((), device=self._processes.device)
        for number, part in enumerate(parts, start=1):
            self._bad.add(part.bad)
            waits = number < len(parts) and self._processes.count > 1
            with self._parallel.no_sync() if waits else nullcontext():
                loss = self._loss(part) / len(parts)
                self._scaler.scale(loss).backward()
            total += loss.detach()
        if train.clip_grad:
            self._scaler.unscale_(self._optimizer)
            clip_grad_norm_(self.network.parameters(), train.clip_grad)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.update(self.network, self.step + 1)
        return total

    def _loss(self, batch: Batch) -> Tensor:
        device, augment = self._processes.device, self._config.augment
        if not len(batch.labels):
            raise ValueError(f"no image of a batch could be read: {', '.join(batch.bad[:3])}")
        images = normalize(batch.images.to(device, non_blocking=True), self._input_format)
        targets = batch.labels.to(device, non_blocking=True)
        if augment.cutout:
            images = cut_out(images, augment.cutout, batch.seeds)
        if self._erase is not None:
            images = self._erase(images)
        if self._mix is not None:
            even = len(images) // 2 * 2  # timm mixes pairs; a skipped image may leave an odd one
            images, targets = self._mix(images[:even], targets[:even])
        images = images.contiguous(memory_format=self._memory_format)
        precision = PRECISIONS[self._config.train.precision]
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = self._parallel(images)
        return self._criterion(logits.float(), targets)

    def _end_epoch(self, monitor: Monitor) -> None:
        epoch = ceil(self.step / self.steps_per_epoch)
        every = self._config.evaluate.every
        last = self.step == self.total_steps
        chooses = self._config.train.select == "best"
        plateau = self._config.train.schedule.name == "plateau"
        due = chooses or plateau or (every and (epoch % every == 0 or last))
        if self._validate is None or not due:
            return
        self._processes.copy_from_first(self.product)
        with monitor.paused():
            seen = self._validate(self.product)
        errors = len(seen.labels) - count_correct(seen.labels, seen.top, 1)
        error = 100 * errors / len(seen.labels)
        monitor.note_validation(error, seen)
        self.schedule.show_loss(seen.loss)
        if chooses and (self.best is None or error < self.best["error"]):
            self.best = {"error": error, "epoch": epoch}
            self._keep(self.product)

    # Stopping and going on -----------------------------------------------------------------------

    def save(self) -> None:
        """Write everything that `resume` needs; rank 0 writes for all."""
        random_states = self._processes.gather(capture_random_state(self._processes.device))
        if not self._processes.is_first:
            return
        state = {
            "step": self.step,
            "total_steps": self.total_steps,
            "processes": self._processes.count,
            "dataset": self._dataset_sha256,
            "seconds": self.seconds,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": self._ema.module.state_dict() if self._ema is not None else None,
            "random": random_states,
            "bad_images": sorted(self._bad.names),
        }
        save_checkpoint(state, self._directory / CHECKPOINT)

    def resume(self) -> None:
        """Go on from the checkpoint in the run's directory, if there is one.

        Raises:
            ValueError: it is damaged, or of another network, data set, length or process count.
        """
        path = self._directory / CHECKPOINT
        if not path.exists():
            logger.info("nothing to resume from in %s: training starts anew", self._directory)
            return
        state = load_checkpoint(path)
        mine = (self.total_steps, self._processes.count, self._dataset_sha256)
        theirs = (state["total_steps"], state["processes"], state["dataset"])
        words = ("steps in all", "processes", "training images (sha256)")
        for word, wanted, found in zip(words, mine, theirs, strict=True):
            if wanted != found:
                raise ValueError(f"{path} was made with {found} {word}, this run has {wanted}")
        try:
            self.network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            if self._ema is not None:
                self._ema.module.load_state_dict(state["ema"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is of another network or optimiser: {reason}") from None
        self.schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self._bad.add(state["bad_images"])
        restore_random_state(state["random"][self._processes.rank], self._processes.device)
        logger.info("resumed at step %d of %d", self.step, self.total_steps)
