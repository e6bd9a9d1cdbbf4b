"""Training steps: what the frozen trunk, the missing float branch and SALAD's matrix product save.

    python -m benchmarks.bench_train [--threads N] [--json FILE] [--gpu]

Start-of-training weights and random images of 224 x 224; all steps are the scripts' own training_step.
"""
import os
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Row, compare, parse_arguments, report
from benchmarks.plain_model import first_tokens, plain_forward
from model import GeoLocalizationNet, HashingOutput, InputError, TwoBranchOutput, build_model
from model.aggregation import SALAD, sinkhorn_assignment
from utils.logs import run_script
from utils.losses import float_losses, hashing_losses
from utils.training import freeze, make_scaler, set_training_mode, training_step

SIZE, PHOTOS_PER_PLACE = 224, 4
BATCH, STAGE_TWO_BATCH, ROUNDS = 8, 16, 5
SALAD_BATCH, SALAD_GRID = 16, (16, 16)
GPU_STEPS, GPU_WARM_UP = 5, 3
STAGES = ("stage one", "stage two", "full fine-tuning", "trunk's forward alone")


def make_step(backbone: str, stage: str, batch: int, device: str = "cpu", precision: str = "fp32", float_branch: bool = False,
              compiled: bool = False) -> Callable[[], object]:
    """One training step of a stage on the same random images each time. `float_branch`: stage two computes it too, and throws it away."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, SIZE, SIZE, device=device)
    labels = torch.arange(batch // PHOTOS_PER_PLACE, device=device).repeat_interleave(PHOTOS_PER_PLACE)
    two = stage == "stage two"
    model = build_model(backbone, "gem", hashing=two, rerank=two).to(device)
    trainable = freeze(model, binary_branch=two, train_backbone=stage == "full fine-tuning")
    if compiled:
        model.compile()
    if stage == "trunk's forward alone":
        return partial(trunk_forward, model.eval(), images, precision)
    set_training_mode(model)
    optimizer = torch.optim.Adam(trainable, lr=1e-6, fused=True)
    criterion = two_branch_losses if two else float_losses
    return partial(training_step, model, optimizer, make_scaler(device, precision), criterion, images, labels, float_branch or not two, precision)


def two_branch_losses(output: HashingOutput | TwoBranchOutput, labels: Tensor):
    """Stage two's losses, whether or not the float branch was computed."""
    return hashing_losses(HashingOutput(output.logits, output.code), labels)


def trunk_forward(model: GeoLocalizationNet, images: Tensor, precision: str) -> Tensor:
    """The trunk's blocks without the adapters."""
    trunk = model.backbone
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16 if precision == "bf16" else torch.float16, enabled=precision != "fp32"):
        x = first_tokens(trunk, images)
        for block in trunk.blocks:
            x = block(x)
        return trunk.norm(x)


def plain_stage_two(batch: int) -> Callable[[], object]:
    """A plain step of the two-branch dinov2-base: both branches are computed, the binary one trains."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, SIZE, SIZE), torch.arange(batch // PHOTOS_PER_PLACE).repeat_interleave(PHOTOS_PER_PLACE)
    model = build_model("dinov2-base", "gem", hashing=True, rerank=True)
    optimizer = torch.optim.Adam(freeze(model, binary_branch=True, train_backbone=False), lr=1e-6)
    set_training_mode(model)

    def step() -> None:
        _, logits, code = plain_forward(model, images)
        optimizer.zero_grad()
        hashing_losses(HashingOutput(logits, code), labels).total.backward()
        optimizer.step()

    return step


# ---- SALAD

def broadcast_clusters(features: Tensor, assignment: Tensor) -> Tensor:
    """V = f P^T as it is often written: every product kept, [B, 128, 64, n], then their sum."""
    return (features.unsqueeze(2) * assignment.unsqueeze(1)).sum(dim=3)


def product_clusters(features: Tensor, assignment: Tensor) -> Tensor:
    """V = f P^T as a matrix product."""
    return features @ assignment.transpose(1, 2)


def salad_aggregation(clusters: Callable[[Tensor, Tensor], Tensor], features: Tensor, scores: Tensor, dust_bin: Tensor) -> None:
    """Forward and backward of SALAD's aggregation: features [B, 128, n] and scores [B, 64, n] to the descriptor's clusters."""
    V = clusters(features, sinkhorn_assignment(scores, dust_bin))
    F.normalize(F.normalize(V, dim=1).flatten(1), dim=1).sum().backward()


class BroadcastSALAD(SALAD):
    """SALAD with the broadcast product."""

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
        features, scores = self.cluster_features(patches).flatten(2), self.score(patches).flatten(2)
        V = broadcast_clusters(features, sinkhorn_assignment(scores, self.dust_bin))
        token = F.normalize(self.token_features(tokens[:, 0]), dim=1)
        return F.normalize(torch.cat([token, F.normalize(V, dim=1).flatten(1)], dim=1), dim=1)


def salad_rows() -> list[Row]:
    """Peak memory, and time, of the aggregation, and of the whole module with its perceptrons."""
    torch.manual_seed(0)
    patches = SALAD_GRID[0] * SALAD_GRID[1]
    features, scores = torch.randn(SALAD_BATCH, 128, patches, requires_grad=True), torch.randn(SALAD_BATCH, 64, patches, requires_grad=True)
    dust_bin = torch.tensor(1.0, requires_grad=True)
    tokens = torch.randn(SALAD_BATCH, 1 + patches, 768, requires_grad=True)
    whole = {kind: kind(768) for kind in (SALAD, BroadcastSALAD)}
    rows = []
    for what, plain, ours, target in (
        ("SALAD's aggregation", partial(salad_aggregation, broadcast_clusters, features, scores, dust_bin),
         partial(salad_aggregation, product_clusters, features, scores, dust_bin), 10),
        ("  with its perceptrons", lambda: whole[BroadcastSALAD](tokens, SALAD_GRID).sum().backward(),
         lambda: whole[SALAD](tokens, SALAD_GRID).sum().backward(), None),
    ):
        times = compare(what, plain, ours, ROUNDS)
        rows += [Row(f"{what}, memory", times.plain_mb, times.ours_mb, "MB", times.plain_mb / times.ours_mb, target,
                     note=f"forward and backward, batch {SALAD_BATCH}, {patches} patches; plain: the broadcast product"),
                 times._replace(plain_mb=None, ours_mb=None, what=f"{what}, time")]
    return rows


# ---- Tables

def cpu_rows() -> list[Row]:
    """dinov2-base on this CPU. Memory is what a step adds to the model."""
    full, one = (make_step("dinov2-base", stage, BATCH) for stage in ("full fine-tuning", "stage one"))
    steps = compare("stage one", full, one, ROUNDS, note=f"batch {BATCH}; plain: --train_backbone, a graph through the trunk")
    both, two = (make_step("dinov2-base", "stage two", STAGE_TWO_BATCH, float_branch=float_branch) for float_branch in (True, False))
    return [
        Row("stage one, memory of a step", steps.plain_mb, steps.ours_mb, "MB", steps.plain_mb / steps.ours_mb, note="plain: --train_backbone"),
        steps._replace(plain_mb=None, ours_mb=None),
        compare("stage two", plain_stage_two(STAGE_TWO_BATCH), two, ROUNDS, 1.1, f"batch {STAGE_TWO_BATCH}; plain: a two-branch step"),
        compare("  without the float branch", both, two, ROUNDS, note="plain: our step with the float branch computed too", memory=False),
        *salad_rows(),
    ]


def matrix_rate(precision: torch.dtype = torch.bfloat16, n: int = 8192) -> float:
    """FLOP a second of large matrix products on the GPU."""
    a, b = (torch.randn(n, n, device="cuda", dtype=precision) for _ in range(2))
    seconds = gpu_seconds(lambda: a @ b)
    return 2 * n**3 / seconds


def gpu_seconds(step: Callable[[], object]) -> float:
    """Seconds of a step."""
    for _ in range(GPU_WARM_UP):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(GPU_STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / GPU_STEPS


def step_flops(step: Callable[[], object]) -> float:
    """FLOP of the matrix products and convolutions of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def largest_batch(backbone: str, stage: str) -> int:
    """The largest power of two times 30 photos, up to 7680, that the card's memory holds in a step. Raises InputError where 30 are too many."""
    fits = 0
    for batch in (30 << i for i in range(9)):
        try:
            step = make_step(backbone, stage, batch, "cuda", "bf16")
            step()
            step()  # only now with the optimizer's averages beside the graph
        except torch.OutOfMemoryError:
            break
        finally:
            step = None
            torch.cuda.empty_cache()
        fits = batch
    if not fits:
        raise InputError(f"the GPU's memory does not hold 30 photos in {stage} of {backbone}")
    return fits


def gpu_rows() -> list[Row]:
    """All stages, base and large, bf16, batches that fill the card. Plain is full fine-tuning, photo for photo."""
    rate = matrix_rate()
    rows = []
    for backbone in ("dinov2-base", "dinov2-large"):
        per_photo = {}
        for stage in reversed(STAGES):
            batch = largest_batch(backbone, stage)
            step = make_step(backbone, stage, batch, "cuda", "bf16")
            flops = step_flops(step)
            torch.cuda.reset_peak_memory_stats()
            seconds = gpu_seconds(step)
            per_photo[stage] = 1e3 * seconds / batch
            rows.append((backbone, stage, batch, torch.cuda.max_memory_allocated() / 1e6, flops / seconds / rate))
            del step
            torch.cuda.empty_cache()
        rows[-len(STAGES):] = [
            Row(f"{backbone}, {stage}", per_photo["full fine-tuning"], per_photo[stage], "ms/photo", per_photo["full fine-tuning"] / per_photo[stage],
                ours_mb=memory, note=f"batch {batch}; {100 * share:.0f} % of the card's {rate / 1e12:.0f} TFLOP/s in matrix products")
            for _, stage, batch, memory, share in rows[-len(STAGES):]]
    return rows


def main() -> None:
    args = parse_arguments("Training steps.", "measure all stages on the GPU, base and large, with batches that fill it", threads=os.cpu_count())
    rows = gpu_rows() if args.gpu else cpu_rows()
    report(f"Training at {SIZE} x {SIZE}", rows, args.json)


if __name__ == "__main__":
    run_script(main)
