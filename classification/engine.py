"""Training: one loop; a resumed run ends with the weights of an uninterrupted one."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from backbones import InputFormat
from backbones.checkpoint import StopRequest, load_checkpoint, save_checkpoint, taking_over
from backbones.device import StepOutOfMemory, is_out_of_memory
from backbones.files import CHECKPOINT
from backbones.monitor import Monitor
from backbones.result import Timing
from backbones.synced_norm import sync_norms
from backbones.weights.load import check_finite
from classification.checkpoint import (
    KINDS,
    capture_random_state,
    restore_random_state,
    seed_everything,
)
from classification.config import ClassificationConfig
from classification.datasets import Batch, ImageArray, ImageFiles
from classification.distributed import Processes
from classification.evaluate import Predictions
from classification.loader import BadImages, train_batches
from classification.metrics import TopK
from classification.optimizer import Schedule, build_optimizer
from classification.order import SampleOrder
from classification.transforms import cut_out, normalize

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class TrainStep:
    """One step of the optimiser: loss of each micro-batch, gradients, update, moving average.

    Attributes:
        network: the network that is trained.
        optimizer: over its parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        config: ClassificationConfig,
        classes: int,
        input_format: InputFormat,
        processes: Processes,
    ) -> None:
        train, augment, device = config.train, config.augment, processes.device
        self._train, self._augment = train, augment
        self._input_format, self._processes = input_format, processes
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self._memory_format = layout
        self.network = network.to(device).to(memory_format=layout)
        self.optimizer = build_optimizer(self.network, train.optimizer)
        self._scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self._shared: DistributedDataParallel | None = None
        if processes.count > 1:
            ids = [device.index] if device.type == "cuda" else None
            spread = sync_norms(self.network) if train.synced_norm else self.network
            self._shared = DistributedDataParallel(spread, device_ids=ids)
        self._forward = self._shared or self.network
        # After DDP has given every process the same weights.
        self._average = ModelEmaV3(self.network, decay=train.ema_decay) if train.ema_decay else None
        self._mix = self._erase = None
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
        self._frozen_norms: list[nn.Module] = []

    @property
    def final_network(self) -> nn.Module:
        """The network to evaluate and keep: the averaged one where there is an average."""
        return self._average.module if self._average is not None else self.network

    def set_mode(self, freeze_norms: bool) -> None:
        """Training mode; with batch norms frozen neither statistics nor weights of them change."""
        self._forward.train()
        self._frozen_norms = []
        if freeze_norms:
            self._frozen_norms.extend(
                module for module in self._forward.modules() if isinstance(module, _BATCH_NORMS)
            )
            for norm in self._frozen_norms:
                norm.eval()

    def __call__(self, micro_batches: list[Batch], number: int) -> Tensor:
        """Make step `number`, counted from 1, on the mean loss over `micro_batches`.

        Returns:
            (2,), detached, of this process's images: that loss, and the top-1 error in percent, NaN
            where labels are mixed.
        """
        total = torch.zeros(2, device=self._processes.device)
        for place, batch in enumerate(micro_batches, start=1):
            is_last = place == len(micro_batches)
            with nullcontext() if is_last or not self._shared else self._shared.no_sync():
                loss, error = self._loss(batch)
                loss = loss / len(micro_batches)
                self._scaler.scale(loss).backward()
            total += torch.stack([loss.detach(), error / len(micro_batches)])
        # Without a gradient an optimiser leaves a parameter alone: no decay, no momentum. Telling
        # autograd instead would leave DistributedDataParallel waiting for gradients.
        for norm in self._frozen_norms:
            norm.zero_grad(set_to_none=True)
        if self._train.clip_grad:
            self._scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.network.parameters(), self._train.clip_grad)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self.network, number)
        return total

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device, augment = self._processes.device, self._augment
        if not len(batch.labels):
            raise ValueError(f"no image of a batch could be read: {', '.join(batch.bad[:3])}")
        images = normalize(batch.images.to(device, non_blocking=True), self._input_format)
        targets = batch.labels.to(device, non_blocking=True)
        if augment.cutout:
            images = cut_out(images, augment.cutout, batch.seeds)
        if self._erase is not None:
            images = self._erase(images)
        if self._mix is not None and len(images) > 1:
            even = len(images) // 2 * 2  # timm mixes pairs; a skipped image may leave an odd one
            images, targets = self._mix(images[:even], targets[:even])
        images = images.contiguous(memory_format=self._memory_format)
        precision = PRECISIONS[self._train.precision]
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = self._forward(images)
        wrong = logits.detach().argmax(1) != targets if targets.ndim == 1 else None
        error = targets.new_tensor(math.nan) if wrong is None else 100 * wrong.float().mean()
        return self._criterion(logits.float(), targets), error

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of network and optimiser."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is of another network or optimiser, or holds numbers that are not finite.
        """
        mine = self.optimizer.state_dict()["param_groups"]
        for ours, theirs in zip(mine, state["optimizer"]["param_groups"], strict=True):
            for key, value in ours.items():
                if key not in ("lr", "initial_lr", "params") and theirs[key] != value:
                    raise ValueError(f"{key} was {theirs[key]}, this run has {value}")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            for key in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
                value = values.get(key)
                if value is not None and value.shape != parameter.shape:
                    raise ValueError(f"{key} of shape {tuple(value.shape)}")
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            if state["average"] is None:
                raise ValueError("it has no averaged weights")
            self._average.module.load_state_dict(state["average"])
        check_finite(self.network.state_dict())
        check_finite(self.final_network.state_dict())


class Trainer:
    """Trains `network` on `dataset`; `validate` scores a network for the curve and for choosing.

    Attributes:
        step: optimiser steps done.
        best: error in percent, epoch and tensors of the best epoch, where one is looked for.
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
    ) -> None:
        train = config.train
        self._config, self._processes, self._directory = config, processes, directory
        self._dataset, self._interpolation = dataset, input_format.interpolation
        self._dataset_sha256 = dataset.sha256()
        self._validate = validate
        self._order = SampleOrder(
            dataset.labels, train.batch_size, config.seed, config.data.sampling
        )
        self.steps_per_epoch = self._order.steps_per_epoch
        self.total_steps = train.iterations or train.epochs * self.steps_per_epoch
        self.step = 0
        self.best: dict[str, Any] | None = None
        self._make_step = TrainStep(
            network, config, len(dataset.class_names), input_format, processes
        )
        self.schedule = Schedule(
            self._make_step.optimizer, train.schedule, self.total_steps, self.steps_per_epoch
        )
        self._monitor = Monitor(
            directory,
            config,
            self.total_steps,
            self.steps_per_epoch * train.batch_size,
            ("loss", "train_top1_error"),
            self._mean,
            "lower train.optimizer.lr, warm up longer (train.schedule.warmup) or set "
            "train.clip_grad",
            processes.is_first,
        )
        self._bad = BadImages(config.data.skip_bad_images, dataset.root)
        seed_everything(config.seed + processes.rank)

    @property
    def final_network(self) -> nn.Module:
        """The network to evaluate and keep, as it is now."""
        return self._make_step.final_network

    @property
    def timing(self) -> Timing:
        """Of training so far, without validation."""
        return self._monitor.timing(self.step)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done, or a plateau has ended training before."""
        return self.step >= self.total_steps or self.schedule.is_over

    # The loop ------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train from the present step to the last.

        Raises:
            ValueError: the loss is not finite, or too many images cannot be read.
            KeyboardInterrupt: SIGTERM or Ctrl-C came; the checkpoint is saved.
        """
        train, processes, monitor = self._config.train, self._processes, self._monitor
        batches = train_batches(
            self._dataset,
            self._order.parts(self.step, self.total_steps, processes, train.accumulate),
            self._config.data,
            self._config.augment,
            self._interpolation,
            processes.device,
        )
        saved = time.monotonic()
        self._set_mode()
        with StopRequest() as stop, monitor.watch(self.step):
            while not self.is_finished:
                if self.step % self.steps_per_epoch == 0:
                    self._set_mode()
                self._step([next(batches) for _ in range(train.accumulate)])
                ends_epoch = self.step % self.steps_per_epoch == 0 or self.is_finished
                # Here the processes wait for each other; one alone can stop after any step.
                is_pause = ends_epoch or monitor.is_due
                if is_pause:
                    monitor.flush()
                if ends_epoch:
                    self._end_epoch()
                if not is_pause and not (stop.asked and processes.count == 1):
                    continue
                due = time.monotonic() - saved >= 60 * train.checkpoint_every
                stopped, due = processes.agree(stop.asked is not None, due)
                if due or stopped or self.is_finished:
                    self.save()
                    saved = time.monotonic()
                if stopped and not self.is_finished:
                    told = (
                        f"stopped by {stop.asked or 'another process'} after step {self.step} of "
                        f"{self.total_steps}; {self._directory / CHECKPOINT} is saved"
                    )
                    logger.info(told)
                    raise KeyboardInterrupt(told)
        if self._bad.names:
            logger.warning("skipped %d unreadable training images", len(self._bad.names))

    def _step(self, micro_batches: list[Batch]) -> None:
        """Make one step of the optimiser and note its loss."""
        for batch in micro_batches:
            self._bad.add(batch.bad)
        lr = self.schedule.learning_rate
        try:
            seen = self._make_step(micro_batches, self.step + 1)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise StepOutOfMemory(str(error)) from None
            raise
        self.step += 1
        self.schedule.move_to(self.step)
        self._monitor.note(self.step, lr, seen)

    def _mean(self, seen: list[Tensor | list[float]]) -> list[list[float]]:
        """Mean over the processes of what was seen of steps, of the device or of a checkpoint."""
        device = self._processes.device
        values = [torch.as_tensor(step, dtype=torch.float32, device=device) for step in seen]
        return self._processes.mean(torch.stack(values)).tolist()

    def _set_mode(self) -> None:
        """Training mode; in the last epochs, where asked, with the batch norms frozen."""
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        frozen = self._config.train.freeze_norms_epochs
        self._make_step.set_mode(self.step // self.steps_per_epoch >= epochs - frozen)

    def _end_epoch(self) -> None:
        epoch = math.ceil(self.step / self.steps_per_epoch)
        every = self._config.evaluate.every
        chooses = self._config.train.select == "best"
        plateau = self._config.train.schedule.name == "plateau"
        due = chooses or plateau or (every and (epoch % every == 0 or self.is_finished))
        if self._validate is None or not due:
            return
        network = self.final_network
        self._processes.copy_from_first(network)
        with self._monitor.paused():
            seen = self._validate(network)
        counts = TopK(len(self._dataset.class_names))
        counts.update(seen.labels, seen.top)
        error = counts.error(1)
        is_finite = math.isfinite(seen.loss)
        self._monitor.write(
            self.step,
            val_top1_error=error,
            val_top5_error=counts.error(5),
            val_loss=seen.loss if is_finite else None,
        )
        if self._processes.is_first:
            done, total = self.step / self.steps_per_epoch, self.total_steps / self.steps_per_epoch
            logger.info("epoch %.4g of %.4g: top-1 error %.2f %%", done, total, error)
            if not is_finite:
                logger.warning("epoch %.4g: outputs of the network are not finite", done)
        self.schedule.show_loss(seen.loss)
        if self.schedule.is_over:
            logger.info("a plateau at the lowest learning rate ends training after epoch %d", epoch)
        if chooses and is_finite and (self.best is None or error < self.best["error"]):
            tensors = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
            self.best = {"error": error, "epoch": epoch, "network": tensors}

    # Stopping and going on -----------------------------------------------------------------------

    def save(self) -> None:
        """Write everything that `resume` needs; rank 0 writes for all."""
        random_states = self._processes.gather(capture_random_state(self._processes.device))
        monitor = self._monitor.state_dict()
        if not self._processes.is_first:
            return
        state = {
            "step": self.step,
            "total_steps": self.total_steps,
            "processes": self._processes.count,
            "dataset": self._dataset_sha256,
            "best": self.best,
            "schedule": self.schedule.state_dict(),
            "monitor": monitor,
            "random": random_states,
            "bad_images": sorted(self._bad.names),
            **self._make_step.state_dict(),
        }
        save_checkpoint(state, self._directory / CHECKPOINT)

    def resume(self) -> None:
        """Go on from the checkpoint in the run's directory, if there is one.

        Raises:
            ValueError: it is damaged, or of another network, data set, length or process count.
        """
        path = self._directory / CHECKPOINT
        if not path.exists():
            logger.info(
                "nothing to resume from in %s: training starts from the beginning", self._directory
            )
            return
        state = load_checkpoint(path, "classification", KINDS)
        mine = (self.total_steps, self._processes.count, self._dataset_sha256)
        theirs = (state["total_steps"], state["processes"], state["dataset"])
        words = ("steps in all", "processes", "training images (sha256)")
        for word, wanted, found in zip(words, mine, theirs, strict=True):
            if wanted != found:
                raise ValueError(f"{path} was made with {found} {word}, this run has {wanted}")
        with taking_over(path, "network or optimiser"):
            self._take_over(state)
        logger.info("resumed at step %d of %d", self.step, self.total_steps)

    def _take_over(self, state: dict[str, Any]) -> None:
        if not 0 <= state["step"] <= self.total_steps:
            raise ValueError(f"step {state['step']} of {self.total_steps}")
        self._make_step.load_state(state)
        self.schedule.load_state_dict(state["schedule"])
        self._monitor.load_state_dict(state["monitor"])
        best = state["best"]
        if best is not None:
            if best["network"].keys() != state["network"].keys():
                raise ValueError("the best epoch is of another network")
            check_finite(best["network"])
            self.best = {
                "error": float(best["error"]),
                "epoch": int(best["epoch"]),
                "network": best["network"],
            }
        self.step = state["step"]
        self._bad.add(map(str, state["bad_images"]))
        restore_random_state(state["random"][self._processes.rank], self._processes.device)
