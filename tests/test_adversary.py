"""Adversarial views: the step by another way of taking the gradient, what is shared and what is not, and whole runs."""

import pytest
import pytorch_lightning as pl
import torch
from torch.testing import assert_close

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
    "ignore:.*mid-epoch.*",
    "ignore:.*multi-threaded, use of fork.*:DeprecationWarning",
)
T, B = 0.3, 6


def clock(temperature=T):
    from contrastneg.negatives import Clock

    return Clock(3, 10, 0.5, 7, temperature=temperature)


def pictures(seed=0, count=B):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def method_of(seed=0, **options):
    from contrastneg import Backbone, Head, Optimizer, SimCLR

    torch.manual_seed(seed)
    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(hidden=24, out=16), "temperature": T}
    return SimCLR(**small | {"optimizer": Optimizer(lr=0.1)} | options)


def encoder_of():
    """A small network with batch norm in float64, and its twin."""
    from contrastneg.adversary import with_own_batch_norm

    encoder = method_of().encoder.double()
    return encoder, with_own_batch_norm(encoder, 0.01)


def unit(x):
    return torch.nn.functional.normalize(x, dim=1)


def self_contrast(twin, images, moving):
    """NT-Xent between images and their copies, as the paper attacks it: both go through the network."""
    from contrastneg.losses import nt_xent

    return nt_xent(unit(twin(images)), unit(twin(moving)), temperature=T).sum()


def test_every_pixel_moves_by_the_step_along_the_sign_of_the_papers_gradient():
    from contrastneg.adversary import attacked

    _, twin = encoder_of()
    x = pictures()
    moving = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(self_contrast(twin, x, moving), moving)
    assert gradient.abs().max() > 1e-4  # although the pair is identical
    moved = attacked(x, twin, torch.arange(B), 0.03, clock())
    assert_close(moved - x, 0.03 * gradient.sign())
    assert not moved.requires_grad


def test_a_small_step_raises_the_loss_that_it_was_made_against():
    from contrastneg.adversary import attacked

    _, twin = encoder_of()
    x = pictures()
    moved = attacked(x, twin, torch.arange(B), 1e-3, clock())
    assert self_contrast(twin, x, moved) > self_contrast(twin, x, x)
    assert torch.equal(attacked(x, twin, torch.arange(B), 0.0, clock()), x)


def test_the_attack_leaves_no_gradient_and_the_statistics_of_plain_images_alone():
    from contrastneg.adversary import attacked

    encoder, twin = encoder_of()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    attacked(pictures(), twin, torch.arange(B), 0.03, clock())
    assert all(p.grad is None for network in (encoder, twin) for p in network.parameters())
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, before[name]), name
    means = [(name, buffer) for name, buffer in twin.named_buffers() if name.endswith("running_mean")]
    assert means
    assert all(not torch.equal(buffer, before[name]) for name, buffer in means)


def test_a_twin_shares_all_weights_but_those_of_batch_norm():
    from torch.nn.modules.batchnorm import _BatchNorm

    encoder, twin = encoder_of()
    layers = dict(encoder.named_modules())
    norms = [name for name, layer in layers.items() if isinstance(layer, _BatchNorm)]
    assert norms
    for name, layer in twin.named_modules():
        if name in norms:
            assert layer.momentum == 0.01
            assert layers[name].momentum != 0.01
        for (own, one), other in zip(
            layer.named_parameters(recurse=False), layers[name].parameters(recurse=False), strict=True
        ):
            assert (one is other) == (name not in norms), f"{name}.{own}"
            assert torch.equal(one, other)


def test_without_batch_norm_a_twin_shares_everything():
    from contrastneg.adversary import with_own_batch_norm

    encoder = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    assert all(
        a is b for a, b in zip(encoder.parameters(), with_own_batch_norm(encoder, 0.1).parameters(), strict=True)
    )


class FirstStep(pl.Callback):
    """Outputs, gradients and buffers of the first step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.batch = batch

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not hasattr(self, "gradient"):
            self.gradient = {name: p.grad.clone() for name, p in pl_module.named_parameters()}
            self.buffers = {name: b.clone() for name, b in pl_module.encoder.named_buffers()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.loss = outputs["loss"].item()


class Keep(pl.Callback):
    """A checkpoint after the first epoch."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.folder / "half.ckpt", weights_only=False)


def trained(method, callbacks=(), ckpt_path=None, **options):
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
    more = {"accelerator": "cpu", "use_distributed_sampler": False, "callbacks": list(callbacks)}
    pl.Trainer(**{"max_epochs": 2} | options | quiet | more).fit(method, datamodule=source, ckpt_path=ckpt_path)
    return method


def test_the_step_is_the_plain_loss_plus_alpha_times_that_of_view_one_and_its_adversary():
    from contrastneg.adversary import CLAE, attacked
    from contrastneg.losses import nt_xent

    plain, first, by_hand = FirstStep(), FirstStep(), method_of(adversary=CLAE(weight=0.5)).double()
    trained(method_of(), [plain], max_steps=1, precision="64-true")
    trained(method_of(adversary=CLAE(weight=0.5)), [first], max_steps=1, precision="64-true")
    view1, view2 = first.batch.view1, first.batch.view2
    z1, z2 = unit(by_hand.encoder(torch.cat([view1, view2]))).chunk(2)
    twin = by_hand.adversarial_encoder
    adversarial = unit(twin(attacked(view1, twin, first.batch.image_id, 0.03, clock())))
    loss = (nt_xent(z1, z2, temperature=T) + 0.5 * nt_xent(z1, adversarial, temperature=T)).mean()
    loss.backward()
    assert first.loss == pytest.approx(loss.item(), abs=1e-12)
    assert plain.loss == pytest.approx(nt_xent(z1, z2, temperature=T).mean().item(), abs=1e-12)
    for name, parameter in by_hand.named_parameters():
        assert_close(first.gradient[name], parameter.grad, msg=name)
    for name, buffer in plain.buffers.items():  # statistics of plain images are those of a run without adversary
        assert torch.equal(first.buffers[name], buffer), name


def test_a_step_of_zero_contrasts_view_one_with_itself_under_the_other_batch_norm():
    from contrastneg.adversary import CLAE
    from contrastneg.losses import nt_xent

    seen = FirstStep()
    trained(method_of(adversary=CLAE(step=0.0)), [seen], max_steps=1, precision="64-true")
    by_hand = method_of(adversary=CLAE(step=0.0)).double()
    z1, z2 = unit(by_hand.encoder(torch.cat([seen.batch.view1, seen.batch.view2]))).chunk(2)
    same = unit(by_hand.adversarial_encoder(seen.batch.view1))
    expected = nt_xent(z1, z2, temperature=T).mean() + nt_xent(z1, same, temperature=T).mean()
    assert seen.loss == pytest.approx(expected.item(), abs=1e-12)


def test_stages_are_told_the_plain_views_once_and_each_weight_is_optimized_once():
    from contrastneg.adversary import CLAE
    from contrastneg.negatives import NeighbourPositive

    method = trained(method_of(adversary=CLAE(), stages=[NeighbourPositive(size=64)]), max_steps=2)
    assert len(method.stages[0].queue) == 2 * 16
    held = [p for group in method.trainer.optimizers[0].param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(method.parameters()))
    assert len(held) > len(list(method.encoder.parameters()))  # batch norm of the adversary's own
    for shared, other in zip(method.encoder.parameters(), method.adversarial_encoder.parameters(), strict=True):
        assert shared is other or shared.ndim == 1


def test_a_resumed_run_ends_where_the_unbroken_one_does_and_weights_stay_shared(tmp_path):
    from contrastneg import load
    from contrastneg.adversary import CLAE
    from contrastneg.schedules import Linear

    settings = {"adversary": CLAE(step=Linear(0.01, 0.05), weight=0.5)}
    unbroken = trained(method_of(**settings), [Keep(tmp_path)])
    loaded = load(tmp_path / "half.ckpt")
    assert loaded.adversary == settings["adversary"]
    assert loaded.adversarial_encoder.projector[0].weight is loaded.encoder.projector[0].weight
    resumed = trained(method_of(seed=1, **settings), ckpt_path=tmp_path / "half.ckpt")
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    norm = next(n for n in unbroken.state_dict() if n.startswith("encoder.backbone") and n.endswith("running_mean"))
    assert not torch.equal(unbroken.state_dict()[norm], unbroken.state_dict()["adversarial_" + norm])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"step": -0.1}, "CLAE.step is -0.1: give a number of at least 0"),
        ({"weight": -1.0}, "CLAE.weight is -1.0: give a number of at least 0"),
        ({"norm_momentum": 0.0}, "CLAE.norm_momentum is 0.0: give a number above 0 and at most 1"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(settings, words):
    from contrastneg.adversary import CLAE

    with pytest.raises(ValueError, match=words):
        CLAE(**settings)


def test_a_loss_that_remembers_views_is_refused_beside_an_adversary():
    from contrastneg.adversary import CLAE
    from contrastneg.objectives import SogCLR

    with pytest.raises(ValueError, match="SogCLR keeps an average for each view of an image, and CLAE makes views"):
        method_of(adversary=CLAE(), loss=SogCLR())


def test_it_trains_in_half_precision():
    from contrastneg.adversary import CLAE

    method = trained(method_of(adversary=CLAE()), max_steps=3, precision="bf16-mixed")
    assert method.trainer.callback_metrics["train/loss"].isfinite()


def test_a_run_takes_its_adversary_from_a_file(tmp_path):
    from contrastneg.__main__ import main

    small = ["--method.backbone.name", "resnet9", "--method.backbone.width", "0.125", "--views.size", "16",
             "--limit-images", "64", "--batch-size", "16", "--epochs", "1", "--workers", "0", "--accelerator", "cpu",
             "--final-scores", "false", "--knn-every", "0"]  # fmt: skip
    file = tmp_path / "clae.yaml"
    file.write_text("method:\n  class_path: SimCLR\n  init_args:\n    adversary: {step: 0.02}\n")
    assert main(["pretrain", "shapes", "--config", str(file), *small, "--run", str(tmp_path / "run")]) == 0
    assert "step: 0.02" in (tmp_path / "run" / "config.yaml").read_text()
