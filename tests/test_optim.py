"""What is optimised, how fast, and what is left out."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close


@pytest.fixture
def moco():
    from contrastneg.encoders import Backbone
    from contrastneg.methods import MoCo

    return MoCo(Backbone(name="resnet18", width=0.125, stem="cifar"), queue_size=16)


def test_the_groups_hold_each_trained_parameter_once_and_nothing_of_the_key_branch_or_queue(moco):
    from contrastneg.optim import Optimizer, parameter_groups

    grouped = [p for group in parameter_groups(moco, Optimizer()) for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in moco.encoder.parameters()}
    assert not {id(p) for p in grouped} & {id(p) for p in moco.key_encoder.parameters()}


def test_biases_and_batch_norm_do_not_decay_unless_asked(moco):
    from contrastneg.optim import Optimizer, parameter_groups

    decayed, spared = parameter_groups(moco, Optimizer(weight_decay=0.1))
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    (everything,) = parameter_groups(moco, Optimizer(weight_decay=0.1, exclude_1d_from_decay=False))
    assert everything["weight_decay"] == 0.1


def one_step(settings, weight, gradient):
    from contrastneg.optim import build_optimizer

    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.tensor(weight))
    optimizer = build_optimizer(settings, module, steps=10, steps_per_epoch=10, rate=settings.lr)["optimizer"]
    module.weight.grad = torch.tensor(gradient)
    optimizer.step()
    return module.weight.detach()


def test_lars_moves_a_weight_that_is_zero():
    from contrastneg.optim import Optimizer

    settings = Optimizer(name="lars", lr=0.1, momentum=0.0, weight_decay=0.0)
    assert_close(one_step(settings, [0.0, 0.0], [1.0, 1.0]), torch.tensor([-0.1, -0.1]))
    assert_close(one_step(settings, [[0.0, 0.0]], [[1.0, 1.0]]), torch.tensor([[-0.1, -0.1]]))


def test_lars_adapts_matrices_by_the_ratio_of_norms_and_leaves_vectors_alone():
    from contrastneg.optim import Optimizer

    settings = Optimizer(name="lars", lr=1.0, momentum=0.0, weight_decay=0.0, trust_coefficient=0.01)
    adapted = one_step(settings, [[3.0, 4.0]], [[0.0, 2.0]])
    assert_close(adapted, torch.tensor([[3.0, 4.0 - 0.01 * 5 / 2 * 2]]))
    assert_close(one_step(settings, [3.0, 4.0], [0.0, 2.0]), torch.tensor([3.0, 2.0]))


def test_the_rate_scales_with_the_images_of_an_optimizer_step_and_says_so():
    from contrastneg.optim import Optimizer, learning_rate

    rate = learning_rate(Optimizer(lr=0.03), 64, 2, 4)
    assert rate.value == pytest.approx(0.06)
    assert rate.text == "0.03 x 64 images x 2 devices x 4 accumulated / 256 = 0.06"
    assert learning_rate(Optimizer(lr=0.03, scale="sqrt"), 64, 2, 4).value == pytest.approx(0.03 * math.sqrt(2))
    assert learning_rate(Optimizer(lr=0.03, scale="none"), 64, 2, 4).value == 0.03


def test_the_cosine_is_counted_in_optimizer_steps():
    from contrastneg.optim import rate_factor

    course = partial(rate_factor, steps=10)
    assert course(0) == 1.0
    assert course(5) == pytest.approx(0.5)
    assert course(10) == pytest.approx(0.0)


def test_the_warm_up_is_a_line_that_meets_the_cosine():
    from contrastneg.optim import rate_factor

    course = [rate_factor(step, steps=12, warmup_steps=4, final=0.1) for step in range(13)]
    assert_close(course[:4], [0.25, 0.5, 0.75, 1.0])
    assert course[4] == 1.0
    assert course[8] == pytest.approx(0.1 + 0.9 * 0.5)
    assert course[12] == pytest.approx(0.1)


def test_forty_micro_batches_of_which_four_make_a_step_are_ten_scheduler_steps():
    import pytorch_lightning as pl

    from contrastneg.optim import Optimizer, build_optimizer

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


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.5}, {"weight_decay": -0.1}, {"reference_batch": 0}])
def test_values_out_of_range_are_refused_by_name(wrong):
    from contrastneg.optim import Optimizer

    with pytest.raises(ValueError, match=f"optimizer.{next(iter(wrong))} is"):
        Optimizer(**wrong)


test_forty_micro_batches_of_which_four_make_a_step_are_ten_scheduler_steps = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*"
)(test_forty_micro_batches_of_which_four_make_a_step_are_ten_scheduler_steps)
