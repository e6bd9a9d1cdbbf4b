"""One step of each stage, in process: what trains and what stays as it is; the schedule, losses that are not finite."""

from functools import partial

import pytest
import torch
from helpers.models import build, image_batch, reference_model
from torch.utils._python_dispatch import TorchDispatchMode

from utils.cli.training import FloatTraining
from utils.runtime.parser import parse
from utils.training.config import SCHEDULES, TrainingConfig
from utils.training.losses import Losses, float_losses, hashing_losses
from utils.training.step import OPTIMIZERS, TrainingStep, learning_rate, set_training_mode
from utils.training.trainer import LossesOnTheirWay

pytestmark = pytest.mark.usefixtures("shallow_vit")
FLOAT = ("backbone.adapters.", "aggregation.", "linear1.", "linear2.")
BINARY = ("backbone.adapters_hashing.", "aggregation_hashing.", "linear3.", "linear4.")
STAGES = {  # (aggregation, hashing, rerank), train_backbone
    "train.py": (("gem", False, False), False),
    "train.py boq": (("boq", False, False), False),
    "train.py salad": (("salad", False, False), False),
    "train.py --train_backbone": (("gem", False, False), True),
    "train_hashing.py": (("gem", True, False), False),
    "train_hashing.py --train_backbone": (("gem", True, False), True),
    "train_rerank.py": (("gem", True, True), False),
    "train_rerank.py salad": (("salad", True, True), False),
}
# Gradients that are 0 but for rounding: BatchNorm takes the bias away again, and Sinkhorn's first step the dust bin's.
ROUNDING_ONLY = (".conv.bias", "dust_bin")
# What a GPU could not do before its host has read a value: float() and bool() of a tensor, or shapes that depend on it.
WAITING = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim")
SIDE = {"gem": 56, "boq": 56, "salad": 126}  # SALAD needs more than 64 patches


class Stage:
    """A stage's model with reference parameters (at the start of training D_fc2 is 0, which makes other gradients 0),
    ready for a step.
    """

    def __init__(self, name, optim="sgd", lr=0.01, ema=None):
        (aggregation, hashing, rerank), self.train_backbone = STAGES[name]
        self.model = reference_model("vit-tiny", aggregation, hashing=hashing, rerank=rerank)
        self.float_branch = not hashing
        criterion, branch = (hashing_losses, "binary") if hashing else (float_losses, "float")
        config = TrainingConfig(optim=optim, lr=lr, ema=ema, train_backbone=self.train_backbone)
        self.training_step = TrainingStep(self.model, config, criterion=criterion, branch=branch)
        self.trainable, self.optimizer = self.training_step.parameters, self.training_step.optimizer
        set_training_mode(self.model)
        self.images = torch.from_numpy(image_batch(7, 6, SIDE[aggregation], SIDE[aggregation]))
        self.labels = torch.tensor([0, 0, 0, 1, 1, 1])

    def trains(self, entry):
        """Whether the design has this entry of the state dict change in a step."""
        in_backbone = entry.startswith("backbone.") and not entry.startswith((FLOAT[0], BINARY[0]))
        if in_backbone:
            return self.train_backbone and entry != "backbone.mask_token"
        return entry.startswith(FLOAT if self.float_branch else BINARY)

    def step(self, criterion=None):
        self.training_step.criterion = criterion or self.training_step.criterion
        return self.training_step(self.images, self.labels)

    def state(self):
        return {name: value.clone() for name, value in self.model.state_dict().items()}


@pytest.mark.parametrize("name", STAGES)
def test_what_a_step_changes_and_what_it_leaves(name):
    stage = Stage(name, "adam", lr=1e-3)  # Adam moves all by about the rate, however small their gradients
    assert {id(p) for p in stage.trainable} == {id(p) for n, p in stage.model.named_parameters() if stage.trains(n)}
    before = stage.state()
    losses = stage.step()
    assert losses.total.isfinite() and losses.total > 0 and int(losses.positives) > 0 and int(losses.negatives) > 0
    for entry, parameter in stage.model.named_parameters():
        assert parameter.requires_grad == stage.trains(entry), entry
        if not stage.trains(entry):
            assert parameter.grad is None, entry
        elif entry.endswith(ROUNDING_ONLY):
            assert parameter.grad is not None, entry
        else:
            assert parameter.grad.isfinite().all() and parameter.grad.any(), entry
    after = stage.model.state_dict()
    for entry, value in before.items():
        if not entry.endswith(ROUNDING_ONLY):
            assert torch.equal(after[entry], value) != stage.trains(entry), entry


@pytest.mark.parametrize("name", STAGES)
def test_modes(name):
    """Eval mode for every module with frozen parameters only, training mode for one with a trainable parameter."""
    stage = Stage(name)
    for path, module in stage.model.named_modules():
        entries = [f"{path}.{entry}".lstrip(".") for entry, _ in module.named_parameters()]
        if entries:
            assert module.training == any(map(stage.trains, entries)), path


def test_batchnorm_statistics_of_the_frozen_branch_do_not_move_even_when_it_computes():
    stage = Stage("train_rerank.py")
    before = stage.state()
    stage.model(stage.images, float_branch=True)
    after = stage.model.state_dict()
    statistics = [entry for entry in before if "running_" in entry]
    assert {torch.equal(after[entry], before[entry]) for entry in statistics if entry.startswith(FLOAT)} == {True}
    assert {torch.equal(after[entry], before[entry]) for entry in statistics if entry.startswith(BINARY)} == {False}


@pytest.mark.parametrize(("name", "active"), [("train.py salad", True), ("train_rerank.py salad", False)])
def test_dropout_of_salad_is_on_where_it_trains(name, active):
    salad = Stage(name).model.aggregation
    torch.manual_seed(0)
    tokens = torch.randn(2, 1 + 81, 192)
    assert [module.training for module in salad.modules() if isinstance(module, torch.nn.Dropout)] == [active, active]
    assert torch.equal(salad(tokens, (9, 9)), salad(tokens, (9, 9))) != active


def calls_of(modules):
    """A list that grows by one for each call of a module."""
    calls = []
    for module in modules:
        module.register_forward_hook(lambda module, inputs, output: calls.append(output))
    return calls


def test_stage_two_does_not_compute_the_float_branch():
    stage = Stage("train_rerank.py")
    model = stage.model
    of_float = calls_of([*model.backbone.adapters, model.aggregation, model.linear1, model.linear2])
    of_binary = calls_of([*model.backbone.adapters_hashing, model.aggregation_hashing, model.linear3, model.linear4])
    stage.step()
    assert (len(of_float), len(of_binary)) == (0, 5)
    model(stage.images)
    assert (len(of_float), len(of_binary)) == (5, 10)


@pytest.mark.parametrize("name", STAGES)
def test_autograd_keeps_no_graph_of_a_frozen_backbone(name):
    stage = Stage(name)
    backbone = stage.model.backbone
    outputs = calls_of([backbone.patch_embed, *backbone.blocks])
    stage.step()
    assert len(outputs) == 3
    assert {output.requires_grad for output in outputs} == {stage.train_backbone}


class Waits(TorchDispatchMode):
    """The operators called in the block that make a host wait for its GPU."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        self.called += [name] * (name in WAITING)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "optim"), [*((name, "adam") for name in STAGES), *(("train.py", optim) for optim in ("adamw", "sgd"))]
)
def test_a_step_never_waits_for_a_gpu(name, optim):
    """test_gpu.py shows it on one, where copies between host and GPU are seen, too."""
    stage = Stage(name, optim=optim, ema=0.9)
    criterion = stage.training_step.criterion
    if not stage.float_branch:
        criterion = partial(hashing_losses, pair_fraction=0.5, generator=torch.Generator())
    stage.step(criterion)
    with Waits() as waits:
        losses = stage.step(criterion)
    assert waits.called == []
    with Waits() as waits:
        float(losses.total), losses.positives.nonzero()
    assert waits.called == ["_local_scalar_dense", "nonzero"]


def test_losses_are_read_when_they_are_needed_not_when_they_are_copied():
    losses = Losses(*torch.arange(6.0))
    with Waits() as waits:
        on_their_way = LossesOnTheirWay(losses)
    assert waits.called == []
    with Waits() as waits:
        assert on_their_way.arrived() == {name: float(i) for i, name in enumerate(Losses._fields)}
    assert waits.called == ["_local_scalar_dense"] * 6


def test_learning_rate_is_halved_every_3_epochs():
    config, batches = TrainingConfig(lr=4e-4), 7
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=4e-4)
    reference = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3 * batches, gamma=0.5)
    for step in range(10 * batches):
        assert learning_rate(step, config, batches) == pytest.approx(reference.get_last_lr()[0], rel=1e-12), step
        optimizer.step()
        reference.step()
    config = TrainingConfig(lr=1.0)
    assert [learning_rate(step, config, batches) for step in (0, 20, 21, 41, 42, 63)] == [1, 1, 0.5, 0.5, 0.25, 0.125]


def test_cosine_schedule_falls_from_lr_to_0_over_all_epochs():
    config, batches = TrainingConfig(lr=0.002, schedule="cosine", epochs_num=4), 5
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.002)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert learning_rate(step, config, batches) == pytest.approx(reference.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        reference.step()
    assert learning_rate(10, config, batches) == pytest.approx(0.001)
    assert learning_rate(20, config, batches) == pytest.approx(0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_raises_the_rate_linearly_to_the_schedule(schedule):
    config = TrainingConfig(lr=0.1, schedule=schedule, warmup_steps=4)
    without = TrainingConfig(lr=0.1, schedule=schedule)
    factors = [learning_rate(step, config, 2) / learning_rate(step, without, 2) for step in range(7)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])


@pytest.mark.parametrize("name", ["train.py", "train_rerank.py"])
def test_the_average_is_that_of_a_naive_loop(name):
    stage = Stage(name, "adam", lr=1e-3, ema=0.3)  # from update 3 on, (1 + t) / (10 + t) exceeds this decay
    start = stage.state()
    states = []
    for _ in range(5):
        stage.step()
        states.append(stage.state())
    expected = {}
    for entry, value in start.items():
        average = value.double()
        for update, state in enumerate(states, start=1):
            decay = min(0.3, (1 + update) / (10 + update))
            average = decay * average + (1 - decay) * state[entry].double()
        expected[entry] = states[-1][entry] if entry.endswith("num_batches_tracked") else average
    with stage.training_step.averaged_weights():
        averaged = stage.state()
    moved = 0
    for entry, value in expected.items():
        torch.testing.assert_close(averaged[entry].double(), value.double(), rtol=1e-5, atol=1e-7, msg=entry)
        moved += not torch.equal(averaged[entry], states[-1][entry])
    assert moved > 30
    assert all(torch.equal(value, states[-1][entry]) for entry, value in stage.state().items())  # its own again


def test_the_average_holds_what_changes_in_training_and_nothing_else():
    stage = Stage("train_rerank.py", ema=0.9)
    before = stage.state()
    stage.step()
    changed = {entry for entry, value in stage.state().items() if not torch.equal(value, before[entry])}
    trained = {entry for entry in before if entry.startswith(BINARY)}
    assert stage.training_step.average.entries.keys() == trained and changed <= trained


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_weights(optim, bad):
    stage = Stage("train.py", optim)
    stage.step()
    before, state = (
        stage.state(),
        {id(p): {k: v.clone() for k, v in s.items() if v is not None} for p, s in stage.optimizer.state.items()},
    )
    losses = stage.step(lambda output, labels: float_losses(output, labels)._replace(total=output.sum() * bad))
    assert not losses.total.isfinite()
    for entry, parameter in stage.model.named_parameters():
        assert torch.equal(parameter, before[entry]), entry
    for parameter, values in stage.optimizer.state.items():
        assert all(torch.equal(values[key], value) for key, value in state[id(parameter)].items())
    stage.step(float_losses)
    assert not torch.equal(stage.model.linear2.weight, before["linear2.weight"])


def test_the_scaler_of_fp32_changes_no_bit():
    stage, plain = Stage("train.py", "adam"), Stage("train.py", "adam")
    for _ in range(2):
        stage.step()
        plain.optimizer.zero_grad()
        float_losses(plain.model(plain.images), plain.labels).total.backward()
        plain.optimizer.step()
    assert all(torch.equal(value, plain.model.state_dict()[name]) for name, value in stage.model.state_dict().items())


@pytest.mark.parametrize(("optim", "default"), [("adam", 0), ("adamw", 0.01), ("sgd", 0)])
def test_weight_decay(optim, default, monkeypatch):
    for flags, expected in (([], default), (["--weight_decay=0.3"], 0.3)):
        monkeypatch.setattr("sys.argv", ["train.py", "--datasets_folder=x", "--device=cpu", f"--optim={optim}", *flags])
        config = parse(FloatTraining, "A test.").training
        assert config.weight_decay == expected
        (group,) = TrainingStep(build(), config, criterion=float_losses, branch="float").optimizer.param_groups
        assert group["weight_decay"] == expected


@pytest.mark.parametrize("precision", [[], ["--precision=bf16"]])
def test_validation_and_test_run_in_fp32_unless_asked(precision, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for flags, expected in (([], "fp32"), (["--eval_precision=fp16"], "fp16")):
        monkeypatch.setattr("sys.argv", ["train.py", "--datasets_folder=x", "--device=cuda", *precision, *flags])
        args = parse(FloatTraining, "A test.")
        assert args.training.precision == ("bf16" if precision else "fp16")
        assert args.extraction.precision == expected
