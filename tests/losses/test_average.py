"""SogCLR: its gradient and averages against plain loops, and what its state does in runs."""

import math

import pytest
import torch
from torch.testing import assert_close

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
    "ignore:.*mid-epoch.*",
)
T, GAMMA = 0.2, 0.7


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def clock(step=0, direction=0):
    from contrastneg.negatives import Clock

    return Clock(step, 10, 0.0, 0, direction=direction)


def sogclr(images=12, gamma=GAMMA):
    from contrastneg.negatives import Facts
    from contrastneg.objectives import SogCLR

    loss = SogCLR(gamma).double()
    loss.begin(Facts(images, 5))
    return loss


def table(query, image_id, keys=None):
    from contrastneg.negatives import Negatives

    keys = unit(30, 5, seed=2) if keys is None else keys
    return Negatives.of(query, unit(len(query), 5, seed=1), keys, query_id=image_id, key_id=torch.arange(30) % 10)


def means(negatives):
    """Mean of e^(s/t) over each row's candidates, in plain numbers."""
    rows = zip(negatives.similarity.tolist(), negatives.kept.tolist(), strict=True)
    kept = [[math.exp(s / T) for s, keep in zip(*row, strict=True) if keep] for row in rows]
    return [sum(row) / len(row) for row in kept]


def test_averages_move_by_gamma_from_the_first_mean_on_for_each_image_and_view():
    loss, ids = sogclr(), torch.tensor([3, 1, 3, 1])  # two images, view 1 then view 2
    expected = {}
    for step in range(4):
        negatives = table(unit(4, 5, seed=10 + step).requires_grad_(), ids)
        value = loss(negatives, T, clock(step))
        for row, mean in enumerate(means(negatives)):
            place = (row // 2, ids[row].item())
            expected[place] = (1 - GAMMA) * expected[place] + GAMMA * mean if place in expected else mean
            positive = negatives.positive_similarity[row].item()
            assert value[row].item() == pytest.approx(T * math.log(expected[place]) - positive, abs=1e-9)
    for place, average in expected.items():
        assert loss.log_average[place].exp().item() == pytest.approx(average, rel=1e-9)
    assert loss.visited.sum() == 4


def test_the_gradient_is_that_of_the_papers_surrogate_with_constant_weights():
    loss, ids = sogclr(), torch.tensor([3, 1, 3, 1])
    loss(table(unit(4, 5, seed=10).requires_grad_(), ids), T, clock())
    query = unit(4, 5, seed=11).requires_grad_()
    negatives = table(query, ids)
    loss(negatives, T, clock(1)).sum().backward()
    average = loss.log_average[[0, 0, 1, 1], ids].exp()
    surrogate, other = torch.zeros((), dtype=torch.double), query.detach().clone().requires_grad_()
    again = table(other, ids)
    for row in range(4):
        kept = again.similarity[row][again.kept[row]]
        weight = (kept.detach() / T).exp() / average[row]
        surrogate = surrogate - again.positive_similarity[row] + (weight * kept).mean()
    surrogate.backward()
    assert_close(query.grad, other.grad)


def test_with_gamma_one_the_gradient_is_t_times_that_of_decoupled():
    from contrastneg.objectives import Decoupled

    loss, ids, gradients = sogclr(gamma=1.0), torch.arange(4), []
    loss(table(unit(4, 5, seed=10).requires_grad_(), ids), T, clock())
    for objective in (loss, Decoupled()):
        query = unit(4, 5).requires_grad_()
        objective(table(query, ids), T, clock()).sum().backward()
        gradients.append(query.grad)
    assert_close(gradients[0], T * gradients[1])


def test_symmetric_losses_keep_the_views_of_either_direction_apart():
    loss, ids = sogclr(), torch.arange(3)
    first = table(unit(3, 5, seed=1).requires_grad_(), ids)
    second = table(unit(3, 5, seed=2).requires_grad_(), ids)
    loss(first, T, clock())
    loss(second, T, clock(direction=1))
    assert_close(loss.log_average[:, :3].exp(), torch.tensor([means(first), means(second)], dtype=torch.double))


def test_validation_rows_without_candidates_and_unknown_images_leave_the_averages_alone():
    loss, ids = sogclr(), torch.arange(3)
    loss(table(unit(3, 5).requires_grad_(), ids), T, clock())
    before = loss.log_average.clone()
    query = unit(3, 5, seed=4).requires_grad_()
    value = loss.eval()(table(query, ids), T, clock())
    assert not torch.equal(value, sogclr()(table(query, ids), T, clock()))  # they count, but stay
    loss.train()
    with torch.no_grad():
        loss(table(query, ids), T, clock())
    empty = loss(table(query, ids, unit(30, 5)).removed(torch.ones(3, 30, dtype=torch.bool)), T, clock())
    assert (empty == 0).all()
    loss(table(query, torch.tensor([50, -1, 99])), T, clock())
    assert torch.equal(loss.log_average, before)


def test_an_image_that_is_drawn_twice_is_kept_once():
    loss = sogclr()
    negatives = table(unit(4, 5).requires_grad_(), torch.tensor([7, 7, 7, 7]))
    loss(negatives, T, clock())
    assert_close(loss.log_average[:, 7].exp(), torch.tensor(means(negatives)[:2], dtype=torch.double))


def test_gamma_may_be_a_schedule():
    from contrastneg.schedules import Linear

    query, ids = unit(4, 5, seed=11).requires_grad_(), torch.arange(4)
    found = []
    for gamma in (Linear(1.0, 0.5), 0.75):
        loss = sogclr(gamma=gamma)
        loss(table(unit(4, 5).requires_grad_(), ids), T, clock())
        found.append(loss(table(query, ids), T, clock(step=5)))
    assert_close(*found)


@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_averages_stay_finite_in_float32_at_small_temperatures(temperature):
    loss, ids = sogclr().float(), torch.arange(2)
    query = torch.eye(5)[:2].requires_grad_()
    for keys in (torch.eye(5)[:2].repeat(15, 1), -torch.eye(5)[:2].repeat(15, 1)):
        value = loss(table(query, ids + 10, keys), temperature, clock())
        value.sum().backward()
    assert value.isfinite().all()
    assert query.grad.isfinite().all()
    assert loss.log_average.isfinite().all()


def method(name, **options):
    from contrastneg import Backbone, Head, methods
    from contrastneg.objectives import SogCLR

    torch.manual_seed(0)
    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16), "loss": SogCLR(0.6)}
    return getattr(methods, name)(**small | ({"queue_size": 20} if name == "MoCo" else {}) | options)


def trained(model, epochs, ckpt_path=None, callbacks=()):
    import pytorch_lightning as pl

    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    source = PretrainData(shapes("train").subset(torch.arange(0, 1600, 40)), Views(size=16), batch_size=8)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = {"accelerator": "cpu", "use_distributed_sampler": False, "callbacks": list(callbacks)}
    trainer = pl.Trainer(max_epochs=epochs, **options, **quiet)
    trainer.fit(model, datamodule=source, ckpt_path=ckpt_path)


@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_averages_are_in_the_checkpoint_and_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path, name):
    import pytorch_lightning as pl

    from contrastneg import load

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)

    unbroken, resumed = method(name), method(name)
    trained(unbroken, 2, callbacks=[Keep()])
    half = load(tmp_path / "half.ckpt").objective
    assert half.gamma == 0.6
    assert half.visited.sum() == (32 if name == "MoCo" else 80)  # MoCo's first batch has no candidates
    trained(resumed, 2, ckpt_path=tmp_path / "half.ckpt")
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert not torch.equal(half.log_average, unbroken.objective.log_average)


def test_a_data_module_that_does_not_tell_the_images_is_refused():
    with pytest.raises(ValueError, match="SogCLR must know the images"):
        method("SimCLR").pipeline.begin(object())
