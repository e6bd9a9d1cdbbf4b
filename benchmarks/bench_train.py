"""Training steps: what is saved by the frozen backbone, by not computing the float branch, and by SALAD's matrix
product.

    python -m benchmarks.bench_train [--threads N] [--json [FILE]] [--gpu]

Models at the start of training, random images of 224 x 224. All of our steps are the scripts' own TrainingStep.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baseline_model import baseline_forward
from benchmarks.common import (
    Row,
    compare,
    compare_with_memory,
    count_gflop,
    parse_arguments,
    report,
    short_name,
    steady_seconds,
    top_ten,
)
from model import GeoLocalizationNet, HashingOutput, ModelConfig, TwoBranchOutput
from model.aggregation import SALAD, patch_map, sinkhorn_assignment
from model.config import PRECISIONS
from model.vision_transformer import VisionTransformer
from utils.runtime.devices import cpu_supports
from utils.runtime.script import cli_main
from utils.training.config import TrainingConfig
from utils.training.losses import Losses, float_losses, hashing_losses
from utils.training.step import TrainingStep, set_trainable, set_training_mode

SIZE, IMAGES_PER_PLACE = 224, 4
CONFIG = TrainingConfig(lr=1e-6)
BATCH, STAGE_TWO_BATCH, ROUNDS = 8, 16, 5
SALAD_BATCH, SALAD_GRID = 16, (16, 16)
GPU_BATCH, STEPS = 120, 3
SHARE_TARGETS = {"dinov2-base": 0.35, "dinov2-large": 0.45}  # of the limit, with adapters in half precision
FULL_FINE_TUNING = "full fine-tuning"
STAGES = (FULL_FINE_TUNING, "stage one", "stage two")


# ---- Training steps


class BothBranchesNet(GeoLocalizationNet):
    """A model that computes the float branch even if the training step does not need it."""

    def forward(
        self, images: Tensor, float_branch: bool = True, frozen_backbone: VisionTransformer | None = None
    ) -> Tensor | HashingOutput | TwoBranchOutput:
        """Ignores `float_branch`."""
        return super().forward(images, True, frozen_backbone)


def make_batch(size: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Random images [B, 3, 224, 224] and their labels [B], the same each time."""
    torch.manual_seed(0)
    labels = torch.arange(size // IMAGES_PER_PLACE, device=device).repeat_interleave(IMAGES_PER_PLACE)
    return torch.randn(size, 3, SIZE, SIZE, device=device), labels


def make_step(
    backbone: str,
    stage: str,
    batch: int,
    *,
    config: TrainingConfig = CONFIG,
    network: type[GeoLocalizationNet] = GeoLocalizationNet,
    copies_backbone: bool = True,
) -> "partial[Losses]":
    """One training step of a stage, on the same random images each time. config.train_backbone follows the stage.

    copies_backbone: whether a copy computes a frozen backbone in half precision, as in TrainingStep.
    """
    images, labels = make_batch(batch, config.device)
    binary = stage == "stage two"
    with torch.device(config.device):
        model = network(ModelConfig(backbone=backbone, hashing=binary, rerank=binary))
    criterion, branch = (hashing_losses, "binary") if binary else (float_losses, "float")
    config = replace(config, train_backbone=stage == FULL_FINE_TUNING)
    step = TrainingStep(model, config, criterion=criterion, branch=branch)
    step.copies_backbone &= copies_backbone
    set_training_mode(model)
    return partial(step, images, labels)


def baseline_stage_two(batch: int) -> Callable[[], object]:
    """A simple step of the two-branch dinov2-base: it computes both branches and trains the binary one."""
    images, labels = make_batch(batch)
    model = GeoLocalizationNet(ModelConfig(backbone="dinov2-base", hashing=True, rerank=True))
    optimizer = torch.optim.Adam(set_trainable(model, "binary", train_backbone=False), lr=CONFIG.lr)
    set_training_mode(model)

    def step() -> None:
        _, logits, code = baseline_forward(model, images)
        assert logits is not None and code is not None
        optimizer.zero_grad()
        hashing_losses(HashingOutput(logits, code), labels).total.backward()
        optimizer.step()

    return step


def step_rows() -> list[Row]:
    """Steps of dinov2-base. The memory is what a step adds to the model."""
    full, stage_one = (make_step("dinov2-base", stage, BATCH) for stage in (FULL_FINE_TUNING, "stage one"))
    note = f"batch {BATCH}; baseline: --train_backbone, which keeps a graph of the backbone"
    one = compare_with_memory("stage one", full, stage_one, rounds=ROUNDS, note=note)
    stage_two = make_step("dinov2-base", "stage two", STAGE_TWO_BATCH)
    stage_one_gflop, stage_two_gflop = count_gflop(stage_one), count_gflop(stage_two)
    one = one.with_share(stage_one_gflop, "fp32")
    both_branches = make_step("dinov2-base", "stage two", STAGE_TWO_BATCH, network=BothBranchesNet)
    return [
        memory_row(one, "stage one, memory of a step", note="baseline: --train_backbone"),
        replace(one, baseline_mb=None, ours_mb=None),
        compare_with_memory(
            "stage two",
            baseline_stage_two(STAGE_TWO_BATCH),
            stage_two,
            rounds=ROUNDS,
            target=1.1,
            note=f"batch {STAGE_TWO_BATCH}; baseline: a two-branch step",
        ).with_share(stage_two_gflop, "fp32"),
        compare(
            "  without the float branch",
            both_branches,
            stage_two,
            rounds=ROUNDS,
            note="baseline: our step, with the float branch computed too",
        ).with_share(stage_two_gflop, "fp32"),
    ]


def bf16_rows() -> list[Row]:
    """Steps of dinov2-base in bf16; none if the CPU has no instructions for it."""
    rows: list[Row] = []
    for stage, batch in (("stage one", BATCH), ("stage two", STAGE_TWO_BATCH)) if cpu_supports("bf16") else ():
        in_bf16 = replace(CONFIG, precision="bf16")
        in_fp32 = make_step("dinov2-base", stage, batch)
        autocast = make_step("dinov2-base", stage, batch, config=in_bf16, copies_backbone=False)
        ours = make_step("dinov2-base", stage, batch, config=in_bf16)
        gflop = count_gflop(in_fp32)
        for name, baseline, note in (
            (f"{stage}, bf16", in_fp32, f"batch {batch}; baseline: our step in fp32"),
            (f"  {stage}, frozen backbone in bf16", autocast, "baseline: our step under autocast alone"),
        ):
            rows.append(compare(name, baseline, ours, rounds=ROUNDS, note=note).with_share(gflop, "bf16"))
    return rows


def memory_row(row: Row, name: str, *, target: float | None = None, note: str) -> Row:
    """A row that compares the memory that another row holds beside its times."""
    baseline, ours = row.baseline_mb, row.ours_mb
    assert baseline is not None and ours is not None
    return Row(name=name, baseline=baseline, ours=ours, unit="MB", ratio=baseline / ours, target=target, note=note)


# ---- SALAD


def broadcast_product(features: Tensor, assignment: Tensor) -> Tensor:
    """V = f P^T as it is often written: all products [B, 128, 64, n] are kept, then summed."""
    return (features.unsqueeze(2) * assignment.unsqueeze(1)).sum(dim=3)


def matrix_product(features: Tensor, assignment: Tensor) -> Tensor:
    """V = f P^T as a matrix product."""
    return features @ assignment.transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class SaladInputs:
    """Inputs of SALAD's aggregation: features [B, 128, n], scores [B, 64, n], and the dust bin's score, a scalar."""

    features: Tensor
    scores: Tensor
    dust_bin: Tensor


def salad_aggregation(inputs: SaladInputs, product: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Forward and backward of SALAD's aggregation, up to the descriptor's clusters."""
    clusters = product(inputs.features, sinkhorn_assignment(inputs.scores, inputs.dust_bin))
    F.normalize(F.normalize(clusters, dim=1).flatten(1), dim=1).sum().backward()


class BroadcastSALAD(SALAD):
    """SALAD with the broadcast product."""

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, 1+n, D] -> [B, output_dim]."""
        patches = patch_map(tokens, grid)
        features, scores = self.cluster_features(patches).flatten(2), self.score(patches).flatten(2)
        clusters = broadcast_product(features, sinkhorn_assignment(scores, self.dust_bin))
        token = F.normalize(self.token_features(tokens[:, 0]), dim=1)
        return F.normalize(torch.cat([token, F.normalize(clusters, dim=1).flatten(1)], dim=1), dim=1)


def salad_rows() -> list[Row]:
    """Memory and time of SALAD's aggregation, and of the whole module."""
    torch.manual_seed(0)
    patches = SALAD_GRID[0] * SALAD_GRID[1]
    inputs = SaladInputs(
        features=torch.randn(SALAD_BATCH, 128, patches, requires_grad=True),
        scores=torch.randn(SALAD_BATCH, 64, patches, requires_grad=True),
        dust_bin=torch.tensor(1.0, requires_grad=True),
    )
    tokens = torch.randn(SALAD_BATCH, 1 + patches, 768, requires_grad=True)
    broadcast_salad, our_salad = BroadcastSALAD(768), SALAD(768)

    def salad_row(name: str, baseline: Callable[[], None], ours: Callable[[], None]) -> Row:
        return compare_with_memory(name, baseline, ours, rounds=ROUNDS).with_share(count_gflop(ours), "fp32")

    aggregation = salad_row(
        "SALAD's aggregation, time",
        partial(salad_aggregation, inputs, broadcast_product),
        partial(salad_aggregation, inputs, matrix_product),
    )
    module = salad_row(
        "  with its perceptrons, time",
        lambda: broadcast_salad(tokens, SALAD_GRID).sum().backward(),
        lambda: our_salad(tokens, SALAD_GRID).sum().backward(),
    )
    note = f"forward and backward, batch {SALAD_BATCH}, {patches} patches; baseline: the broadcast product"
    return [
        memory_row(aggregation, "SALAD's aggregation, memory", target=10, note=note),
        replace(aggregation, baseline_mb=None, ours_mb=None),
        memory_row(module, "  with its perceptrons, memory", note=note),
        replace(module, baseline_mb=None, ours_mb=None),
    ]


# ---- GPU


def gpu_rows() -> list[Row]:
    """All stages of base and large in each precision, and of base with --compile too."""
    rows = []
    for backbone in ("dinov2-base", "dinov2-large"):
        for precision in PRECISIONS:
            config = replace(CONFIG, device="cuda", precision=precision)
            full, *others = (stage_row(backbone, stage, config=config, batch=GPU_BATCH) for stage in STAGES)
            rows += [full.against(full.ours), *(row.against(full.ours) for row in others)]
    compiled = replace(CONFIG, device="cuda", precision="bf16", compile=True)
    return rows + [stage_row("dinov2-base", stage, config=compiled, batch=GPU_BATCH) for stage in STAGES]


def stage_row(backbone: str, stage: str, *, config: TrainingConfig, batch: int, captured: bool = False) -> Row:
    """Steps of a stage, as the settings say; captured: the model in CUDA graphs, for which the scripts have no flag.

    The baseline of compiled steps is the same step without. The stages with adapters have the share of the limit to
    reach that SHARE_TARGETS names; the note of a row below it has a profile.
    """
    step = make_step(backbone, stage, batch, config=replace(config, compile=False))
    gflop = count_gflop(step, config.device) / batch
    baseline = None
    if config.compile or captured:
        baseline = 1e3 * steady_seconds(step, config.device, calls=STEPS, warm_up=STEPS) / batch
        step = make_step(backbone, stage, batch, config=config)
        if captured:
            assert isinstance(step.func, TrainingStep)
            step.func.model.compile(mode="reduce-overhead")
    on_gpu = config.device == "cuda"
    if on_gpu:
        gc.collect()  # the baseline's model
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    milliseconds = 1e3 * steady_seconds(step, config.device, calls=STEPS, warm_up=STEPS) / batch
    row = Row(
        name=f"{short_name(backbone)}, {stage}, {config.precision}" + " --compile" * config.compile,
        ours=milliseconds,
        unit="ms/image",
        ours_mb=torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None,
        share_target=None if stage == FULL_FINE_TUNING else SHARE_TARGETS.get(backbone),
    ).with_share(gflop, config.precision, config.device)
    row = row if baseline is None else row.against(baseline)
    return replace(row, note=top_ten(step, config.device)) if row.is_below_share else row


def main() -> None:
    args = parse_arguments(
        "Training steps.",
        threads=None,
        gpu_help="measure all stages of base and large on the GPU",
    )
    rows = gpu_rows() if args.gpu else [*step_rows(), *bf16_rows(), *salad_rows()]
    batch = f", batches of {GPU_BATCH} images" if args.gpu else ""
    report(f"Training at {SIZE} x {SIZE}{batch}", rows, args.json, gpu=args.gpu)


if __name__ == "__main__":
    cli_main(main)
