"""A training run around its steps: schedule, logging, checkpoints, the best model, stopping and resuming."""

import csv
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tqdm import tqdm

from datasets.benchmark import Benchmark
from model import InputError
from model.weights import load_weights, model_content
from utils.models import weights_on_all_ranks
from utils.retrieval.config import EvaluationConfig
from utils.retrieval.evaluation import Pipeline, Search
from utils.retrieval.extraction import Extractor, prepare, settle_images
from utils.retrieval.metrics import format_recalls
from utils.retrieval.report import announce
from utils.runtime import distributed
from utils.runtime.atomic_files import atomic_write, save_tensors
from utils.runtime.memory import peak_memory_bytes
from utils.runtime.run_dir import RunDir
from utils.runtime.signals import Stopped, stop_signals
from utils.training.checkpoints import BEST_MODEL, LAST_MODEL, TrainState, save_checkpoint
from utils.training.config import TrainingConfig
from utils.training.loader import Batch, PlaceLoader, mix_seeds
from utils.training.losses import Losses
from utils.training.step import TrainingStep, learning_rate, set_training_mode
from utils.training.tensorboard import TensorBoard
from utils.training.validation import Validator

CURVES = "curves.png"
MAX_NON_FINITE = 3  # steps in a row


class TrainingData(NamedTuple):
    """Batches of places to train on, a function that validates a model, and the dataset to test on."""

    loader: PlaceLoader
    validate: Validator
    test: Benchmark


class LossesOnTheirWay:
    """Losses of a step that are copied to the host while the GPU goes on. A float() would wait until the GPU has
    nothing left to do, the steps that were started since included.
    """

    def __init__(self, losses: Losses) -> None:
        on_gpu = losses.total.is_cuda
        self.copies = Losses(*(value.to("cpu", non_blocking=on_gpu) for value in losses))
        self.copied = torch.cuda.current_stream(losses.total.device).record_event() if on_gpu else None

    def arrived(self) -> dict[str, float]:
        """The losses by name, once this step is done."""
        if self.copied is not None:
            self.copied.synchronize()
        return {name: float(value) for name, value in self.copies._asdict().items()}


class Trainer:
    """Drives a training run from `state`; train.py shows the loop. A new run's best_model.pth is the initial model.

    Everything random in a step is seeded with (seed, step, rank), so that a resumed run draws the same numbers; the
    generator of the loss, if it has one, with (seed, step). Raises Stopped after a stop signal, with everything saved.
    """

    def __init__(
        self,
        training_step: TrainingStep,
        data: TrainingData,
        config: TrainingConfig,
        *,
        run: RunDir,
        state: TrainState,
    ) -> None:
        self.training_step, self.loader, self.config = training_step, data.loader, config
        self.data, self.run, self.state = data, run, state
        self.non_finite_steps = 0
        self.pending: LossesOnTheirWay | None = None
        self.board: TensorBoard | None = None
        if config.tensorboard and distributed.is_main():
            self.board = TensorBoard(run.folder / "tensorboard", first_step=state.step)
        stop_signals.defer()
        self._log_summary()
        if state.step == 0:
            self._save_best_model()

    def batches(self) -> Iterator[Batch]:
        """The remaining batches, in training mode, until epochs_num or until patience runs out.

        After each epoch come validation, a row of metrics, and a checkpoint; the model is saved if the last dataset's
        R@1 + R@5 is the best so far. Without validation the latest model is the best.
        """
        while self.state.epoch < self.config.epochs_num and self.state.not_improved < self.config.patience:
            yield from self._batches_of_epoch()
            self._finish_epoch()

    def record(self, losses: Losses) -> None:
        """Logs the losses of a step, one step late: while the host waits for them, a GPU computes the next step."""
        on_their_way = LossesOnTheirWay(losses)
        self._flush()
        self.pending = on_their_way

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block before which everything is saved, so that a stop signal ends the script at once."""
        try:
            with stop_signals.interruptible():
                yield
        except Stopped as stopped:
            logging.info("Stopped by signal %d. Resume with --resume=%s", stopped.signal, self.run.folder / LAST_MODEL)
            raise

    def test(self, config: EvaluationConfig, search: Search) -> None:
        """Evaluates best_model.pth on the test dataset, with the search of the evaluation script for such models."""
        model = self.training_step.model
        with self.interruptible():
            weights_on_all_ranks(model, lambda: load_weights(model, self.run.folder / BEST_MODEL))
            settings = settle_images(config.extraction, model.image_config)
            extractor = Extractor(model=prepare(model.eval(), settings), config=settings)
            weights = self.run.folder / BEST_MODEL
            Pipeline(extractor, config, search, weights=weights).evaluate(self.data.test, self.run)
            announce([self.run])

    def _batches_of_epoch(self) -> Iterator[Batch]:
        """The epoch's remaining batches. Afterwards it saves a checkpoint and sets eval mode."""
        state, num_batches = self.state, self.loader.num_batches
        set_training_mode(self.training_step.model)
        self.started = time.perf_counter()
        with tqdm(
            desc=f"Epoch {state.epoch + 1}/{self.config.epochs_num}",
            unit="batch",
            initial=state.batch,
            total=num_batches,
            disable=not distributed.is_main(),
        ) as self.bar:
            for batch in self.loader.batches(state.epoch, state.batch):
                if batch is not None:
                    self._prepare_step()
                    yield batch
                    state.step += 1
                state.batch += 1
                self.bar.update()
                if distributed.any_rank(stop_signals.received is not None):
                    self._flush()
                    self._save()
                    with self.interruptible():
                        raise Stopped(signal.SIGTERM)  # reached only if the signal came to another rank
            self._flush()
        self._save()
        self.training_step.model.eval()
        # On CPUs each rank has its own BatchNorm statistics.
        distributed.broadcast_tensors(self.training_step.model.buffers())
        if self.training_step.average:
            distributed.broadcast_tensors(self.training_step.average.entries.values())

    def _finish_epoch(self) -> None:
        with self.interruptible(), self.training_step.averaged_weights():  # everything is saved by now
            results = self.data.validate(self.training_step.model)
        state, sums = self.state, self.state.sums
        steps, device = max(sums.get("steps", 0), 1), self.config.device
        on_gpu = device.startswith("cuda")
        row = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "loss": sums.get("total", 0.0) / steps,
            **{name: sums.get(name, 0.0) / steps for name in ("multi_similarity", "constraint", "mined_pair_fraction")},
            "learning_rate": self.training_step.optimizer.param_groups[0]["lr"],
            "seconds": sums.get("seconds", 0.0),
            "unreadable_images": len(self.loader.unreadable),
            "peak_memory_mb": (torch.cuda.max_memory_allocated(device) if on_gpu else peak_memory_bytes()) / 1e6,
        }
        score = None
        for result in results:
            logging.info("Epoch %d, %s, val: %s", state.epoch + 1, result.dataset, format_recalls(result.recalls))
            row |= {f"{result.dataset}_R@{n}": value for n, value in result.recalls.items()}
            row |= {f"{result.dataset}_first_stage_R@{n}": value for n, value in (result.first_stage or {}).items()}
            score = result.recalls[1] + result.recalls[5]
        improved = score is None or score > state.best_score
        state.not_improved = 0 if improved else state.not_improved + 1
        if improved:
            state.best_score = state.best_score if score is None else score
            self._save_best_model()
        state.history.append(row)
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, {}
        if distributed.is_main():
            self._write_metrics()
        if self.board:
            self.board.add_epoch(row, self.run.folder / CURVES)
        self._save()

    def _prepare_step(self) -> None:
        step, config = self.state.step, self.config
        torch.manual_seed(mix_seeds(config.seed, step, distributed.rank()))
        if self.training_step.generator is not None:
            self.training_step.generator.manual_seed(mix_seeds(config.seed, step))
        for group in self.training_step.optimizer.param_groups:
            group["lr"] = learning_rate(step, config, self.loader.num_batches)

    def _flush(self) -> None:
        """Adds the last step's losses to the sums. Raises InputError after three non-finite ones in a row."""
        if self.pending is None:
            return
        values = self.pending.arrived()
        self.pending = None
        self.state.losses.append(values["total"] if math.isfinite(values["total"]) else math.nan)
        self.non_finite_steps = 0 if math.isfinite(values["total"]) else self.non_finite_steps + 1
        if self.non_finite_steps >= MAX_NON_FINITE:
            last = self.run.folder / LAST_MODEL
            raise InputError(
                f"The loss was not finite in {MAX_NON_FINITE} steps in a row, the last of them before step "
                f"{self.state.step}. Likely causes: --lr {self.config.lr} is too high, --precision "
                f"{self.config.precision}, or damaged weights."
                + (f" The last good checkpoint is {last}." if last.exists() else "")
            )
        if self.non_finite_steps:
            return
        now = time.perf_counter()
        values |= {"steps": 1, "seconds": now - self.started}
        self.started = now
        sums = self.state.sums
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        rate = self.training_step.optimizer.param_groups[0]["lr"]
        if self.board:
            self.board.add_step(self.state.step, values, learning_rate=rate)
        images = self.config.batch_size * self.loader.places.config.images_per_place
        self.bar.set_postfix(
            loss=f"{values['total']:.3f}",
            lr=f"{rate:.1e}",
            images_per_s=f"{images * sums['steps'] / sums['seconds']:.0f}",
        )

    def _write_metrics(self) -> None:
        """Writes metrics.csv, one row per epoch, and curves.png."""
        from utils.training.curves import draw_curves  # loads matplotlib

        history = self.state.history
        with atomic_write(self.run.folder / "metrics.csv") as file:
            rows = csv.DictWriter(file, history[-1].keys())
            rows.writeheader()
            rows.writerows(history)
        draw_curves(self.run.folder / CURVES, history, self.state.losses)

    def _save(self) -> None:
        if self.board:
            self.board.flush()  # before the checkpoint, after which a resumed run goes on; it replaces what is beyond
        if distributed.is_main():
            save_checkpoint(self.run.folder / LAST_MODEL, self.training_step, self.state)

    def _save_best_model(self) -> None:
        if distributed.is_main():
            with self.training_step.averaged_weights():
                save_tensors(self.run.folder / BEST_MODEL, model_content(self.training_step.model))

    def _log_summary(self) -> None:
        model, places, config = self.training_step.model, self.loader.places, self.config
        backbone = [p for name, p in model.named_parameters() if model.branch_of(name) == "backbone"]
        parts = (list(model.parameters()), self.training_step.parameters, backbone)
        total, trainable, frozen = (sum(p.numel() for p in part) / 1e6 for part in parts)
        logging.info(f"Parameters: {total:.2f} M, of which {trainable:.2f} M trainable; backbone {frozen:.2f} M")
        logging.info(
            f"Training data: {len(places)} places, {places.num_images} images, {self.loader.num_batches} batches of "
            f"{config.batch_size} x {places.config.images_per_place} per epoch"
        )
        if self.state.step:
            done = self.state.batch == self.loader.num_batches
            where = "validation" if done else f"batch {self.state.batch + 1}"
            logging.info(f"Resuming at epoch {self.state.epoch + 1}, {where}")
