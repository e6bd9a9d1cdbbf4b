"""The training loop that all stages share."""
import csv
import logging
import math
import resource
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.benchmark import Benchmark
from datasets.gsv_cities import GSVCities, PlaceBatch, PlaceBatches, collate_places
from datasets.transforms import normalize
from model import GeoLocalizationNet, HashingOutput, InputError
from model.weights import DINOV2_NAMES, load_foundation, load_weights
from utils import distributed
from utils.arguments import extraction_settings
from utils.checkpoint import Progress, restore, save_checkpoint, write_tensors
from utils.evaluation import Store, evaluate, validate
from utils.features import PRECISIONS
from utils.files import atomic_write
from utils.index import make_header
from utils.logs import Run, plain_values
from utils.losses import Losses
from utils.pictures import draw_curves
from utils.recall import format_recalls
from utils.signals import Stopped, StopSignals, ignore_stop_signals

EPOCHS_TO_HALVE = 3
MOST_UNREADABLE = 0.01  # of all photos
MOST_NON_FINITE = 3  # steps in a row
BEST_MODEL, LAST_MODEL = "best_model.pth", "last_model.pth"
VALIDATION_RECALLS = [1, 5, 10]
SUMS = ("loss", "multi_similarity", "constraint", "informative_pairs")
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9)}

Criterion = Callable[[Tensor | HashingOutput, Tensor], Losses]


def load_trunk(model: GeoLocalizationNet, backbone: str, path: Path | None, train_backbone: bool) -> None:
    """DINOv2's weights from a file, or downloaded. A trunk that has none published starts from scratch, if it is to be trained."""
    if path is not None or backbone in DINOV2_NAMES or not train_backbone:
        load_foundation(model, backbone, path)


def freeze(model: GeoLocalizationNet, binary_branch: bool, train_backbone: bool) -> list[nn.Parameter]:
    """Leaves a gradient to the adapters and head of one branch, and to the trunk if asked; returns these parameters."""
    for name, parameter in model.named_parameters():
        is_binary = name.startswith(("backbone.adapters_hashing.", "aggregation_hashing.", "linear3.", "linear4."))
        is_trunk = name.startswith("backbone.") and not name.startswith(("backbone.adapters.", "backbone.adapters_hashing."))
        trained = train_backbone and name != "backbone.mask_token" if is_trunk else is_binary == binary_branch
        parameter.requires_grad_(trained)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_training_mode(module: nn.Module) -> None:
    """Training mode for what holds trainable parameters and for its parameterless parts (dropout); eval mode for all that is frozen."""
    module.training = any(parameter.requires_grad for parameter in module.parameters())
    for child in module.children():
        if any(True for _ in child.parameters()):
            set_training_mode(child)
        else:
            child.train(module.training)


def learning_rate(step: int, base: float, batches_per_epoch: int) -> float:
    """Halved every 3 epochs."""
    return base * 0.5 ** (step // (EPOCHS_TO_HALVE * batches_per_epoch))


def make_scaler(device: str, precision: str) -> torch.amp.GradScaler:
    """Scales fp16's gradients. In the other precisions the scale stays 1, and it leaves out steps with a gradient that is not finite."""
    kind = torch.device(device).type
    return torch.amp.GradScaler(kind) if precision == "fp16" else torch.amp.GradScaler(kind, init_scale=1.0, growth_interval=2**31 - 1)


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, criterion: Criterion, images: Tensor,
                  labels: Tensor, float_branch: bool = True, precision: str = "fp32", sizes: list[int] | None = None) -> Losses:
    """One step on normalised images [B, 3, H, W] and labels [B], a rank's share of the batch; the losses are the whole batch's, float32.

    `float_branch` False trains the binary branch without computing the float one. sizes: B of each rank, where there are several.
    """
    with torch.autocast(images.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        output = model(images, float_branch)
    if sizes is not None and len(sizes) > 1:
        labels = distributed.gather_batch(labels, sizes)
        gathered = [distributed.gather_batch(tensor, sizes) for tensor in ([output] if float_branch else output)]
        output = gathered[0] if float_branch else HashingOutput(*gathered)
    losses = criterion(output, labels)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(losses.total).backward()
    distributed.sum_gradients([parameter for group in optimizer.param_groups for parameter in group["params"]])
    scaler.step(optimizer)
    scaler.update()
    return Losses(*(value.detach() for value in losses))


class Training:
    """A run of one stage. `args` are those of `parse_training`; `checkpoint` is a training checkpoint to go on from, or None.

    `criterion` takes the output for the whole batch and its labels; `generator`, where it has one, is seeded anew for each step. Raises
    InputError for data and arguments that cannot be used, before anything is written.
    """

    def __init__(self, args: Namespace, model: GeoLocalizationNet, criterion: Criterion, binary_branch: bool, train_backbone: bool = False,
                 generator: torch.Generator | None = None, checkpoint: dict | None = None) -> None:
        self.args = args
        self.criterion = criterion
        self.float_branch = not binary_branch
        self.generator = generator
        self.settings = extraction_settings(args)

        # ---- Data
        self.places = GSVCities(args.gsv_cities_folder, args.cities, tuple(args.image_size), args.images_per_place, args.seed,
                                args.randaugment_ops, args.exact_decoding)
        self.batches = PlaceBatches(self.places.city_places, args.train_batch_size, args.seed, distributed.rank(), distributed.world_size())
        self.loader = DataLoader(self.places, batch_sampler=self.batches, num_workers=args.num_workers, collate_fn=collate_places,
                                 pin_memory=args.device.startswith("cuda"), persistent_workers=args.num_workers > 0,
                                 worker_init_fn=ignore_stop_signals)
        self.validation = [_validation_set(args, name) for name in args.val_datasets]
        self.test = Benchmark(args.datasets_folder, args.dataset_name, "test", args.val_positive_dist_threshold)

        # ---- Model and optimizer
        if distributed.world_size() > 1 and args.device.startswith("cuda"):
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before the optimizer takes the parameters
        self.model = model.to(args.device)
        self.trainable = freeze(self.model, binary_branch, train_backbone)
        if args.compile:
            self.model.compile()  # in place: the names in checkpoints stay
        self.optimizer = OPTIMIZERS[args.optim](self.trainable, lr=args.lr, fused=True)
        self.scaler = make_scaler(args.device, args.precision)

        # ---- Progress, and the run's folder
        self.arguments = plain_values(args)
        self.progress = Progress()
        if checkpoint is not None:
            if not (args.resume.parent / BEST_MODEL).exists():
                raise InputError(f"no {BEST_MODEL} beside {args.resume}: a run goes on in its own folder, which holds both")
            self.progress = restore(checkpoint, args.resume, self.model, self.optimizer, self.scaler, self.arguments)
        self.unreadable: set[str] = set()
        self.non_finite_steps = 0
        self.run_log = Run(args, args.resume.parent if checkpoint is not None else None) if distributed.is_main() else None
        self.folder = distributed.from_main(self.run_log.folder if self.run_log else None)
        self.signals = StopSignals()

    def run(self) -> None:
        """Trains to the last epoch or the end of patience, then evaluates the best model on the test set.

        Raises Stopped after a stop signal, with everything saved.
        """
        self._log_summary()
        if not (self.folder / BEST_MODEL).exists():
            self._write(BEST_MODEL)
        try:
            while self.progress.epoch < self.args.epochs_num and self.progress.not_improved < self.args.patience:
                if self.progress.batch < self.batches.num_batches:
                    self._train_epoch()
                    self._save()
                with self.signals.break_off():
                    self._finish_epoch()
                self._save()
            with self.signals.break_off():
                load_weights(self.model, self.folder / BEST_MODEL)
                header = make_header(self.model, self.args.backbone, self.args.aggregation, self.folder / BEST_MODEL, self.settings, "fp32")
                evaluate(self.run_log, self.model.eval(), self.test, self.settings, self.args.recall_values, Store(header),
                         getattr(self.args, "rerank_num", 0))
        except Stopped as stopped:
            self._log(f"Stopped by signal {stopped.signal}. Go on with --resume={self.folder / LAST_MODEL}")
            raise

    def _train_epoch(self) -> None:
        """Trains from the next batch to the epoch's last. A stop signal ends it after a step: all is saved, and Stopped raised."""
        progress = self.progress
        set_training_mode(self.model)
        self.batches.set_position(progress.epoch, progress.batch)
        self.started = time.perf_counter()
        pending = None
        with tqdm(self.loader, desc=f"Epoch {progress.epoch + 1}/{self.args.epochs_num}", unit="batch", initial=progress.batch,
                  total=self.batches.num_batches, disable=not distributed.is_main()) as bar:
            for batch in bar:
                losses = self._step(batch)
                # Read one step late: a GPU computes this step while the host waits for the last one.
                self._record(pending, bar)
                pending = losses
                progress.batch += 1
                if distributed.any_rank(self.signals.received is not None):
                    self._record(pending, bar)
                    self._save()
                    raise Stopped(self.signals.received or signal.SIGTERM)  # it may have come to another rank
            self._record(pending, bar)

    def _step(self, batch: PlaceBatch) -> Losses | None:
        """One step; None where a rank has no readable place in its share."""
        self._count_unreadable(batch.unreadable)
        sizes = distributed.all_ranks(len(batch.labels))
        if min(sizes) == 0:
            return None
        step = self.progress.step
        # What a step draws depends on (seed, step, rank) alone: a run that goes on draws the same.
        torch.manual_seed(_mix(self.args.seed, step, distributed.rank()))
        if self.generator is not None:
            self.generator.manual_seed(_mix(self.args.seed, step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.args.lr, self.batches.num_batches)
        self.progress.step += 1
        device = self.args.device
        images = normalize(batch.images.to(device, non_blocking=True).float().div(255))
        return training_step(self.model, self.optimizer, self.scaler, self.criterion, images, batch.labels.to(device, non_blocking=True),
                             self.float_branch, self.args.precision, sizes)

    def _record(self, losses: Losses | None, bar: tqdm) -> None:
        """Adds a step's losses to the epoch's sums and shows them. Raises InputError after the third in a row that is not finite."""
        if losses is None:
            return
        values = dict(zip(SUMS, (float(losses.total), float(losses.multi_similarity), float(losses.constraint), float(losses.informative)),
                          strict=True))
        self.non_finite_steps = 0 if math.isfinite(values["loss"]) else self.non_finite_steps + 1
        if self.non_finite_steps >= MOST_NON_FINITE:
            last = self.folder / LAST_MODEL
            raise InputError(f"the loss was not finite in {MOST_NON_FINITE} steps in a row, the last of them before step {self.progress.step}. "
                             f"Likely causes: --lr {self.args.lr} too high, --precision {self.args.precision}, weights that are not whole."
                             + (f" The last good checkpoint is {last}" if last.exists() else ""))
        if self.non_finite_steps:
            return
        sums = self.progress.sums
        now = time.perf_counter()
        values.update(steps=1, seconds=now - self.started)
        self.started = now
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        photos = self.args.train_batch_size * self.args.images_per_place
        bar.set_postfix(loss=f"{values['loss']:.3f}", lr=f"{self.optimizer.param_groups[0]['lr']:.1e}",
                        photos_per_s=f"{photos * sums['steps'] / sums['seconds']:.0f}")

    def _finish_epoch(self) -> None:
        """Validates, keeps the weights where they are the best so far, and adds a row to the metrics."""
        progress, sums = self.progress, self.progress.sums
        steps = max(sums.get("steps", 0), 1)
        row = {"epoch": progress.epoch + 1, "step": progress.step, **{name: sums.get(name, 0.0) / steps for name in SUMS},
               "learning_rate": self.optimizer.param_groups[0]["lr"], "seconds": sums.get("seconds", 0.0),
               "unreadable_photos": len(self.unreadable), "peak_memory_mb": peak_memory_mb(self.args.device)}
        score = None
        self.model.eval()
        distributed.copy_from_main(self.model.buffers())  # on CPUs each rank has its own BatchNorm statistics; the main one's are saved
        for benchmark in self.validation:
            recalls = validate(self.model, benchmark, self.settings, VALIDATION_RECALLS, self.float_branch)
            self._log(f"Epoch {progress.epoch + 1}, {benchmark.name}, val: {format_recalls(recalls)}")
            row |= {f"{benchmark.name}_R@{n}": value for n, value in recalls.items()}
            score = recalls[1] + recalls[5]
        improved = score is None or score > progress.best_score
        progress.not_improved = 0 if improved else progress.not_improved + 1
        if improved:
            progress.best_score = score if score is not None else progress.best_score
            self._write(BEST_MODEL)
        progress.history.append(row)
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, {}
        if distributed.is_main():
            write_metrics(self.folder, progress.history)

    def _count_unreadable(self, reasons: list[str]) -> None:
        for reason in set(reasons) - self.unreadable:
            logging.warning("Unreadable, another photo of its place stands in: %s", reason)
        self.unreadable.update(reasons)
        most = MOST_UNREADABLE * self.places.num_photos
        if len(self.unreadable) > most:
            raise InputError(f"{len(self.unreadable)} of {self.places.num_photos} training photos cannot be read, more than {MOST_UNREADABLE:.0%}: "
                             f"is {self.args.gsv_cities_folder} whole? The last one: {reasons[-1]}")

    def _save(self) -> None:
        if distributed.is_main():
            save_checkpoint(self.folder / LAST_MODEL, self.model, self.optimizer, self.scaler, self.progress, self.arguments)

    def _write(self, name: str) -> None:
        """Writes the bare weights; no process goes on before they are there."""
        if distributed.is_main():
            write_tensors(self.folder / name, self.model.state_dict())
        distributed.barrier()

    def _log(self, message: str) -> None:
        if self.run_log is not None:
            self.run_log.log(message)

    def _log_summary(self) -> None:
        count = {name: sum(p.numel() for p in parameters) / 1e6 for name, parameters in (
            ("total", self.model.parameters()), ("trainable", self.trainable), ("trunk", self.model.backbone.trunk_parameters()))}
        self._log(f"Parameters: {count['total']:.2f} M, {count['trainable']:.2f} M of them trainable; the trunk has {count['trunk']:.2f} M")
        self._log(f"Training data: {len(self.places)} places, {self.places.num_photos} photos, {self.batches.num_batches} batches of "
                  f"{self.args.train_batch_size} x {self.args.images_per_place} an epoch")
        if self.progress.step:
            self._log(f"Going on at epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}")


def write_metrics(folder: Path, history: list[dict]) -> None:
    """Writes metrics.csv, a row an epoch, and curves.png."""
    with atomic_write(folder / "metrics.csv") as file:
        rows = csv.DictWriter(file, history[-1].keys())
        rows.writeheader()
        rows.writerows(history)
    draw_curves(folder / "curves.png", history)


def peak_memory_mb(device: str) -> float:
    """Most memory that was in use at once: of the GPU where one computes, else of this process; in MB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _validation_set(args: Namespace, name: str) -> Benchmark:
    try:
        return Benchmark(args.datasets_folder, name, "val", args.val_positive_dist_threshold)
    except InputError as error:
        raise InputError(f"{error}\nOther validation sets: --val_datasets NAME [NAME ...]; without any: --val_datasets none") from error


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
