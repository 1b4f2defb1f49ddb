"""Mixed queries: the mixes by hand, the loss against a cross-entropy with two labels, and whole runs from YAML."""

import copy

import pytest
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


def clock(step=3, **place):
    from contrastneg.negatives import Clock

    return Clock(step, 10, 0.5, 7, **place)


def pictures(seed=0, side=8):
    return torch.randn(B, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_imix_adds_two_images_of_which_the_first_weighs_at_least_half():
    from contrastneg.mixing import IMix

    x = pictures()
    (mixed,), rows = IMix()(x, clock())
    assert torch.equal(rows.query, torch.arange(B).repeat(2))
    assert torch.equal(rows.key[:B], torch.arange(B))
    partner, share = rows.key[B:], rows.share[:B]
    assert sorted(partner.tolist()) == list(range(B))
    assert ((share >= 0.5) & (share <= 1)).all()
    assert len(share.unique()) == B
    assert_close(rows.share[B:], 1 - share)
    for image in range(B):
        assert_close(mixed[image], share[image] * x[image] + (1 - share[image]) * x[partner[image]])


@pytest.mark.parametrize("step", range(8))
def test_unmix_mixes_with_the_batch_in_reverse_order_by_sums_or_by_boxes(step):
    from contrastneg.mixing import UnMix

    x = pictures()
    for box in (0.0, 1.0):
        (plain, mixed), rows = UnMix(box=box)(x, clock(step))
        assert plain is x
        assert torch.equal(rows.query, torch.cat([torch.arange(B), torch.arange(B).repeat(2) + B]))
        assert torch.equal(rows.key, torch.cat([torch.arange(B).repeat(2), torch.arange(B).flip(0)]))
        one, share, rest = rows.share.view(3, B)[:, 0].tolist()
        assert (one, share + rest) == (1, pytest.approx(1))
        assert torch.equal(rows.share, rows.share.view(3, B)[:, :1].expand(-1, B).flatten())
        if box == 0:
            assert_close(mixed, share * x + rest * x.flip(0))
        else:
            own = (mixed == x).all(dim=1)  # (B, H, W)
            assert ((mixed == x.flip(0)).all(dim=1) | own).all()
            assert own.double().mean(dim=(1, 2)).tolist() == pytest.approx([share] * B)


def test_boxes_cover_what_the_drawn_number_leaves_and_both_kinds_of_mix_occur():
    from contrastneg.mixing import UnMix, span

    assert span(32, 0.75, 16) == slice(8, 24)  # half a side is a quarter of the area
    assert span(32, 0.75, 30) == slice(22, 32)
    assert span(32, 1.0, 16) == slice(16, 16)
    boxes = [(UnMix()(pictures(), clock(step))[0][1] == pictures()).all(dim=1).any().item() for step in range(40)]
    assert 10 <= sum(boxes) <= 30


@pytest.mark.parametrize("name", ["IMix", "UnMix"])
def test_draws_are_a_function_of_seed_step_batch_rank_and_direction(name):
    from contrastneg import mixing

    def shares(**place):
        return getattr(mixing, name)()(pictures(), clock(**place))[1].share

    again = shares()
    assert torch.equal(again, shares())
    for other in ({"rank": 1}, {"batch": 1}, {"direction": 1}, {"step": 4}):
        assert not torch.equal(again, shares(**other)), other


class Linear(torch.nn.Module):
    """A backbone of one matrix."""

    num_features = 5

    def __init__(self):
        super().__init__()
        start = torch.randn(12, 5, generator=torch.Generator().manual_seed(9), dtype=torch.double)
        self.weight = torch.nn.Parameter(start)

    def forward(self, images):
        return images.flatten(1) @ self.weight


def linear_moco(monkeypatch, **options):
    """MoCo without a trainer, in float64, with ten keys of other images in its queue."""
    import pytorch_lightning as pl

    from contrastneg import Backbone, Head, KeyQueue, MoCo, methods

    method = MoCo(Backbone(name="resnet9", width=0.125), Head(out=5), temperature=T, queue_size=10, **options)
    method.encoder = methods.Encoder(Linear(), torch.nn.Identity())
    method.key_encoder = copy.deepcopy(method.encoder).requires_grad_(False)
    if method.queue is not None:
        method.queue = KeyQueue(10, 5, torch.double)
        keys = torch.randn(10, 5, generator=torch.Generator().manual_seed(4), dtype=torch.double)
        method.queue.push(torch.nn.functional.normalize(keys, dim=1), torch.arange(10) + 50)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    method.trainer = pl.Trainer(accelerator="cpu", **quiet)
    method.trainer.optimizers = [torch.optim.SGD(method.encoder.parameters(), lr=0.1)]
    monkeypatch.setattr("contrastneg.methods.clock_of", lambda module: clock(temperature=T))
    monkeypatch.setattr(MoCo, "log", lambda *args, **kwargs: None)
    return method


def batch():
    from contrastneg.data.module import TwoViews

    return TwoViews(pictures(1, side=2), pictures(2, side=2), torch.arange(B))


def embedded(images):
    return torch.nn.functional.normalize(images.flatten(1) @ Linear().weight.detach(), dim=1)


def test_the_loss_of_imix_is_the_cross_entropy_with_two_labels_over_batch_and_queue(monkeypatch):
    from contrastneg.mixing import IMix

    method = linear_moco(monkeypatch, mixing=IMix())
    (mixed,), rows = IMix()(batch().view1, clock())
    everything = torch.cat([embedded(batch().view2), method.queue.keys.clone()])
    labels = torch.zeros(B, len(everything), dtype=torch.double)
    for row in range(2 * B):
        labels[row % B, rows.key[row]] += rows.share[row]
    expected = torch.nn.functional.cross_entropy(embedded(mixed) @ everything.T / T, labels)
    loss = method.training_step(batch(), 0)["loss"]
    assert_close(loss, expected)
    loss.backward()
    assert method.encoder.backbone.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("box", [0.0, 1.0])
def test_the_loss_of_unmix_is_that_of_plain_images_and_of_mixes_with_either_key(monkeypatch, box):
    from contrastneg.losses import info_nce
    from contrastneg.mixing import UnMix

    method = linear_moco(monkeypatch, mixing=UnMix(box=box))
    (plain, mixed), rows = UnMix(box=box)(batch().view1, clock())
    key, queue = embedded(batch().view2), method.queue.keys.clone()

    def loss_of(images, positive):
        query = embedded(images)
        return info_nce((query * positive).sum(dim=1), query @ queue.T, temperature=T)

    share = rows.share[B]
    expected = loss_of(plain, key) + share * loss_of(mixed, key) + (1 - share) * loss_of(mixed, key.flip(0))
    outputs = method.training_step(batch(), 0)
    assert_close(outputs["loss"], expected.mean())
    assert_close(outputs["features"], batch().view1.flatten(1) @ Linear().weight.detach())  # of plain images


def test_without_mixing_in_effect_imix_is_the_plain_loss_and_unmix_twice_it(monkeypatch):
    from contrastneg.mixing import IMix, UnMix

    whole = torch.ones(B, dtype=torch.double)
    monkeypatch.setattr("contrastneg.mixing.draws_of", lambda *_: Unmixed())
    assert torch.equal(IMix()(batch().view1, clock())[1].share[:B], whole)
    plain = linear_moco(monkeypatch).training_step(batch(), 0)["loss"]
    for box in (0.0, 1.0):
        unmix = linear_moco(monkeypatch, mixing=UnMix(box=box)).training_step(batch(), 0)["loss"]
        assert_close(unmix, 2 * plain)
    everything = torch.cat([embedded(batch().view2), linear_moco(monkeypatch).queue.keys])
    logits = embedded(batch().view1) @ everything.T / T
    imix = linear_moco(monkeypatch, mixing=IMix()).training_step(batch(), 0)["loss"]
    assert_close(imix, torch.nn.functional.cross_entropy(logits, torch.arange(B)))


class Unmixed:
    """Draws of a Beta law that always gives one."""

    def beta(self, a, b, size=None):
        import numpy as np

        return 1.0 if size is None else np.ones(size)

    def permutation(self, count):
        import numpy as np

        return np.arange(count)[::-1].copy()

    def random(self):
        return 0.5

    def integers(self, side):
        return 0


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("IMix", {"alpha": 0.0}, "IMix.alpha is 0.0: give a number above 0"),
        ("UnMix", {"alpha": -1.0}, "UnMix.alpha is -1"),
        ("UnMix", {"box": 1.5}, "UnMix.box is 1.5: give a number from 0 to 1"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(name, settings, words):
    from contrastneg import mixing

    with pytest.raises(ValueError, match=words):
        getattr(mixing, name)(**settings)


def test_a_loss_that_remembers_images_is_refused_beside_mixes():
    from contrastneg import MoCo
    from contrastneg.mixing import IMix
    from contrastneg.objectives import SogCLR

    with pytest.raises(ValueError, match="SogCLR keeps an average for each view of an image, and IMix makes views"):
        MoCo(mixing=IMix(), loss=SogCLR())


@pytest.mark.parametrize(("name", "symmetric"), [("IMix", True), ("UnMix", False)])
def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path, name, symmetric):
    import pytorch_lightning as pl

    from contrastneg import Backbone, Head, MoCo, load, mixing
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views
    from contrastneg.negatives import MoCHi, SupportViews

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)

    def fit(**options):
        torch.manual_seed(0)
        small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16), "queue_size": 20}
        stages = [SupportViews(views=2), MoCHi(8, 4, 2, warmup_epochs=0)]  # views and stages go by row, too
        method = MoCo(**small, stages=stages, symmetric=symmetric, mixing=getattr(mixing, name)(0.8))
        source = PretrainData(shapes("train").subset(torch.arange(0, 1600, 40)), Views(size=16), batch_size=8)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        more = {"enable_model_summary": False, "use_distributed_sampler": False, "callbacks": [Keep()]}
        pl.Trainer(max_epochs=2, accelerator="cpu", **quiet, **more).fit(method, datamodule=source, **options)
        return method

    unbroken = fit()
    assert load(tmp_path / "half.ckpt").mixing == getattr(mixing, name)(0.8)
    resumed = fit(ckpt_path=tmp_path / "half.ckpt")
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("given", ["file", "options"])
def test_a_run_takes_its_mix_by_name(tmp_path, capsys, given):
    from contrastneg.__main__ import main

    small = ["--method.backbone.name", "resnet9", "--method.backbone.width", "0.125", "--views.size", "16",
             "--limit-images", "64", "--batch-size", "16", "--epochs", "1", "--workers", "0", "--accelerator", "cpu",
             "--final-scores", "false", "--knn-every", "0", "--method.queue_size", "32"]  # fmt: skip
    file = tmp_path / "mix.yaml"
    file.write_text(
        "method:\n  class_path: MoCo\n  init_args:\n    mixing: {class_path: UnMix, init_args: {box: 1.0}}\n"
    )
    options = ["--method", "MoCo", "--method.mixing.box", "1.0", "--method.mixing", "UnMix"]
    chosen = ["--config", str(file)] if given == "file" else options
    assert main(["pretrain", "shapes", *chosen, *small, "--run", str(tmp_path / "run")]) == 0
    assert "UnMix" in (tmp_path / "run" / "config.yaml").read_text()
    capsys.readouterr()
    assert main(["pretrain", "shapes", "--method", "MoCo", "--method.mixing", "UnMux"]) == 2
    assert "did you mean UnMix?" in capsys.readouterr().err
