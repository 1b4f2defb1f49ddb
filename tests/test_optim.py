"""What is optimised, how fast, and what is left out."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from contrastneg.encoders import Backbone
from contrastneg.methods import MoCo
from contrastneg.optim import Optimizer, build_optimizer, learning_rate, parameter_groups, rate_factor
from contrastneg.schedules import Cosine, Step


@pytest.fixture
def moco():
    return MoCo(Backbone(name="resnet18", width=0.125, stem="cifar"), queue_size=16)


def test_the_groups_hold_each_trained_parameter_once_and_nothing_of_the_key_branch_or_queue(moco):
    grouped = [p for group in parameter_groups(moco, Optimizer()) for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in moco.encoder.parameters()}
    assert not {id(p) for p in grouped} & {id(p) for p in moco.key_encoder.parameters()}


def test_biases_and_batch_norm_do_not_decay_unless_asked(moco):
    decayed, spared = parameter_groups(moco, Optimizer(weight_decay=0.1))
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    (everything,) = parameter_groups(moco, Optimizer(weight_decay=0.1, exclude_1d_from_decay=False))
    assert everything["weight_decay"] == 0.1


def test_a_bias_with_two_dimensions_does_not_decay():
    module = torch.nn.Module()
    module.attention_bias = torch.nn.Parameter(torch.zeros(2, 3))
    (group,) = parameter_groups(module, Optimizer())
    assert (group["name"], group["weight_decay"]) == ("spared", 0.0)


def test_shared_parameters_are_optimised_once():
    first = torch.nn.Linear(2, 2)
    groups = parameter_groups(torch.nn.ModuleList([first, first]), Optimizer())
    assert sum(len(group["params"]) for group in groups) == 2


def one_step(settings, weight, gradient):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.tensor(weight))
    optimizer = build_optimizer(settings, module, steps=10, steps_per_epoch=10, rate=settings.lr)["optimizer"]
    module.weight.grad = torch.tensor(gradient)
    optimizer.step()
    return module.weight.detach()


def test_lars_moves_a_weight_that_is_zero():
    settings = Optimizer(name="lars", lr=0.1, momentum=0.0, weight_decay=0.0)
    assert_close(one_step(settings, [0.0, 0.0], [1.0, 1.0]), torch.tensor([-0.1, -0.1]))
    assert_close(one_step(settings, [[0.0, 0.0]], [[1.0, 1.0]]), torch.tensor([[-0.1, -0.1]]))


def test_lars_adapts_matrices_by_the_ratio_of_norms_and_leaves_vectors_alone():
    settings = Optimizer(name="lars", lr=1.0, momentum=0.0, weight_decay=0.0, trust_coefficient=0.01)
    adapted = one_step(settings, [[3.0, 4.0]], [[0.0, 2.0]])
    assert_close(adapted, torch.tensor([[3.0, 4.0 - 0.01 * 5 / 2 * 2]]))
    assert_close(one_step(settings, [3.0, 4.0], [0.0, 2.0]), torch.tensor([3.0, 2.0]))
    everything = Optimizer(name="lars", momentum=0.0, trust_coefficient=0.01, lr=1.0, exclude_1d_from_decay=False)
    assert one_step(everything, [3.0, 4.0], [0.0, 2.0])[1] > 3.9


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_a_spared_parameter_without_gradient_stays_and_a_decayed_one_shrinks(name):
    settings = Optimizer(name=name, lr=0.1, weight_decay=0.5, trust_coefficient=1.0)
    assert_close(one_step(settings, [2.0], [0.0]), torch.tensor([2.0]))
    assert one_step(settings, [[2.0]], [[0.0]]).item() < 2.0


def test_the_rate_scales_with_the_images_of_an_optimizer_step_and_says_so():
    rate = learning_rate(Optimizer(lr=0.03), 64, 2, 4)
    assert rate.value == pytest.approx(0.06)
    assert rate.text == "0.03 x 64 images x 2 devices x 4 accumulated / 256 = 0.06"
    assert learning_rate(Optimizer(lr=0.03, scale="sqrt"), 64, 2, 4).value == pytest.approx(0.03 * math.sqrt(2))
    assert learning_rate(Optimizer(lr=0.03, scale="none"), 64, 2, 4).value == 0.03


def test_the_cosine_is_counted_in_optimizer_steps():
    course = partial(rate_factor, steps=10)
    assert course(0) == 1.0
    assert course(5) == pytest.approx(0.5)
    assert course(10) == pytest.approx(0.0)


def test_the_warm_up_is_a_line_that_meets_the_cosine():
    course = [rate_factor(step, steps=12, warmup_steps=4, course=Cosine(1.0, 0.1)) for step in range(13)]
    assert_close(course[:4], [0.25, 0.5, 0.75, 1.0])
    assert course[4] == 1.0
    assert course[8] == pytest.approx(0.1 + 0.9 * 0.5)
    assert course[12] == pytest.approx(0.1)


def test_the_course_after_the_warm_up_is_any_schedule_or_constant():
    moco_v1 = [rate_factor(step, steps=10, course=Step(1.0, 0.1, (0.6, 0.8))) for step in range(11)]
    assert_close(moco_v1, [1.0] * 6 + [0.1] * 2 + [0.01] * 3)
    assert [rate_factor(step, steps=4, warmup_steps=2, course=1.0) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    assert [rate_factor(step, steps=2, warmup_steps=4) for step in range(3)] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_optimizer_and_schedule_go_on_from_their_safely_loaded_state(name, tmp_path):
    def fresh():
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        built = build_optimizer(Optimizer(name=name, warmup_epochs=1.0), module, 8, 2, rate=0.1)
        return module, built["optimizer"], built["lr_scheduler"]["scheduler"]

    def train(module, optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            module(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            schedule.step()

    unbroken, stopped, resumed = fresh(), fresh(), fresh()
    train(*unbroken, 6)
    train(*stopped, 3)
    torch.save([part.state_dict() for part in stopped], tmp_path / "state.pt")
    for part, state in zip(resumed, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*resumed, 3)
    assert torch.equal(resumed[0].weight, unbroken[0].weight)
    assert resumed[2].get_last_lr() == unbroken[2].get_last_lr()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
def test_forty_micro_batches_of_which_four_make_a_step_are_ten_scheduler_steps():
    import pytorch_lightning as pl

    class Line(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.rates = []

        def training_step(self, batch, batch_idx):
            self.rates.append(self.optimizers().param_groups[0]["lr"])
            return self.layer(batch[0]).sum()

        def configure_optimizers(self):
            steps = int(self.trainer.estimated_stepping_batches)
            return build_optimizer(Optimizer(), self, steps, steps, rate=1.0)

    def rates_of(batches):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(batches, 1)))
        module = Line()
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            accumulate_grad_batches=4,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        return trainer.global_step, module.rates, trainer.optimizers[0].param_groups[0]["lr"]

    steps, rates, last = rates_of(40)
    assert steps == 10
    assert rates[0] == rates[3] == 1.0
    assert rates[20] == pytest.approx(0.5)
    assert last == pytest.approx(0.0, abs=1e-12)
    steps, _, last = rates_of(42)  # the last window has two micro-batches and is a step, too
    assert steps == 11
    assert last == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"reference_batch": 0},
        {"betas": (0.9, 1.0)},
        {"trust_coefficient": 0.0},
        {"warmup_epochs": -1.0},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=rf"^Optimizer\.{next(iter(wrong))} is .*: give"):
        Optimizer(**wrong)


@pytest.mark.parametrize("settings", [{"lr": float("nan")}, {"weight_decay": float("inf")}, {"warmup_epochs": float("nan")},
                                      {"trust_coefficient": float("inf")}, {"course": -1.0}])  # fmt: skip
def test_numbers_that_are_not_finite_and_courses_below_0_are_refused(settings):
    from contrastneg.optim import Optimizer

    with pytest.raises(ValueError, match=rf"^Optimizer\.{next(iter(settings))} is .*: give"):
        Optimizer(**settings)


def test_a_course_that_falls_below_0_within_the_run_is_refused_with_the_place():
    from contrastneg.checks import WrongSetting, check_numbers

    dips = Optimizer(course=Step(1.0, -0.5, (0.3, 0.6)))
    with pytest.raises(
        WrongSetting, match=r"^Optimizer\.course is -0\.5: give .* \(a value of .*, at 30 % of the run\)$"
    ):
        check_numbers(dips, "method.optimizer")
