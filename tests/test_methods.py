"""Training steps of MoCo and SimCLR, with a real Trainer on real images."""

import copy
import math
import re

import pytest
import pytorch_lightning as pl
import torch
from torch.testing import assert_close

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
    "ignore:.*isn't saved and will be deleted.*",
)
SIDE = 16


@pytest.fixture(scope="module")
def pictures():
    from contrastneg.data.shapes import shapes

    return shapes("train").subset(torch.arange(0, 2000, 50))


def data_of(pictures, **options):
    from contrastneg.data.module import PretrainData
    from contrastneg.data.views import Views

    return PretrainData(pictures, Views(size=SIDE), pictures, pictures, **{"batch_size": 8, **options})


def method_of(name="MoCo", seed=0, **options):
    from contrastneg import Backbone, Head, Optimizer, methods

    torch.manual_seed(seed)
    small = {
        "backbone": Backbone(name="resnet9", width=0.125),
        "projector": Head(out=16),
        "optimizer": Optimizer(lr=0.1),
    }
    if name == "MoCo":
        small |= {"queue_size": 20, "momentum": 0.9}
    return getattr(methods, name)(**small | options)


def trainer_of(**options):
    settings = {"max_steps": 6, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False}
    return pl.Trainer(**settings | quiet | options)


class Losses(pl.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def losses_of(method, data, **options):
    losses = Losses()
    trainer_of(callbacks=[losses], **options).fit(method, datamodule=data)
    return losses.values


def as_loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class Aligned(torch.nn.Module):
    """An encoder whose two views of image i are both the i-th unit vector."""

    num_features = 4

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return images[:, 0, 0]


@pytest.fixture
def aligned_moco(monkeypatch):
    """MoCo over :class:`Aligned` without a trainer: two images, one-hot embeddings."""
    from contrastneg import methods

    def make(**options):
        method = method_of(temperature=0.1, **options)
        method.encoder.backbone = Aligned()
        method.encoder.projector = torch.nn.Identity()
        method.key_encoder = copy.deepcopy(method.encoder)
        method.queue = methods.KeyQueue(20, 4)
        trainer = trainer_of()
        trainer.optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)]
        method.trainer = trainer
        monkeypatch.setattr("contrastneg.stepping.run_length", lambda module: (10, 10))
        monkeypatch.setattr(type(method), "log", lambda *args, **kwargs: None)
        return method

    return make


def one_hot_batch(ids):
    from contrastneg.data.module import TwoViews

    images = torch.eye(4)[ids][:, None, None].expand(-1, 1, 4, -1)
    return TwoViews(images, images, ids)


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_query_meets_its_own_key_in_either_direction(aligned_moco, symmetric):
    method = aligned_moco(symmetric=symmetric)
    method.training_step(one_hot_batch(torch.tensor([2, 3])), 0)
    loss = method.training_step(one_hot_batch(torch.tensor([0, 1])), 1)["loss"].item()
    queued = 4 if symmetric else 2
    assert loss == pytest.approx(math.log(1 + queued * math.exp(-10)), abs=1e-6)  # log 3 if it met its own key
    assert method.queue.candidates()[1].tolist() == ([2, 3] * 2 + [0, 1] * 2 if symmetric else [2, 3, 0, 1])


def test_the_two_directions_update_the_stages_with_numbers_of_their_own(aligned_moco, monkeypatch):
    method, told = aligned_moco(symmetric=True), []
    monkeypatch.setattr(method.pipeline, "update", lambda keys, image_id, clock: told.append(clock.direction))
    method.training_step(one_hot_batch(torch.tensor([0, 1])), 0)
    assert told == [0, 1]


def test_an_image_that_returns_does_not_meet_its_older_key(aligned_moco):
    method = aligned_moco()
    for _ in range(3):
        loss = method.training_step(one_hot_batch(torch.tensor([0, 1])), 1)["loss"].item()
    assert loss == pytest.approx(math.log(1 + 2 * math.exp(-10)), abs=1e-6)  # two older keys of the other image


def test_moco_v3_contrasts_with_the_other_images_of_the_batch_and_scales_by_two_temperatures(aligned_moco):
    method = aligned_moco(queue_size=0, symmetric=True, loss_scale="2t_sum")
    method.queue = None
    outputs = method.training_step(one_hot_batch(torch.tensor([0, 1, 2])), 0)
    one_direction = math.log(1 + 2 * math.exp(-10))
    assert outputs["loss"].item() == pytest.approx(2 * 0.1 * 2 * one_direction, rel=1e-4)


@pytest.mark.parametrize(("scale", "factor"), [("mean", 1.0), ("sum", 2.0), ("2t_sum", 0.8)])
def test_loss_scales_are_the_named_conventions(pictures, scale, factor):
    reference = losses_of(method_of(symmetric=True, temperature=0.2), data_of(pictures), max_steps=2)
    scaled = losses_of(method_of(symmetric=True, temperature=0.2, loss_scale=scale), data_of(pictures), max_steps=2)
    assert reference[0] == scaled[0] == 0  # nothing is queued yet
    assert scaled[1] == pytest.approx(factor * reference[1], rel=1e-4)


def test_simclr_sum_is_twice_the_mean(pictures):
    mean = losses_of(method_of("SimCLR"), data_of(pictures), max_steps=1)
    total = losses_of(method_of("SimCLR", loss_scale="sum"), data_of(pictures), max_steps=1)
    assert total[0] == pytest.approx(2 * mean[0])


def test_simclr_is_the_mean_of_nt_xent(pictures):
    from contrastneg.contrast import unit
    from contrastneg.losses import nt_xent

    method, data = method_of("SimCLR", temperature=0.3), data_of(pictures)
    twin = copy.deepcopy(method).train()
    loader = data.train_dataloader()
    batch = data.on_after_batch_transfer(next(iter(loader)), 0)
    z1, z2 = unit(twin.encoder(torch.cat([batch.view1, batch.view2]))).chunk(2)
    expected = nt_xent(z1, z2, temperature=0.3).mean().item()
    assert losses_of(method, data, max_steps=1)[0] == pytest.approx(expected, rel=1e-5)


def test_the_first_loss_does_not_depend_on_what_an_unfilled_queue_holds(pictures):
    one, other = method_of(), method_of()
    other.queue.keys.normal_()
    assert losses_of(one, data_of(pictures), max_steps=2) == losses_of(other, data_of(pictures), max_steps=2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_keys_in_the_queue_are_of_unit_length_and_their_images_stand_beside_them(pictures, symmetric):
    method, pushed = method_of(symmetric=symmetric), []
    push = method.queue.push
    method.queue.push = lambda keys, image_id: (pushed.append((keys.clone(), image_id.clone())), push(keys, image_id))
    trainer_of(max_steps=2).fit(method, datamodule=data_of(pictures))
    keys, key_id = method.queue.candidates()
    assert_close(keys.norm(dim=1), torch.ones(20 if symmetric else 16))
    stream = torch.cat([part for part, _ in pushed]), torch.cat([part for _, part in pushed])
    assert len(stream[0]) == (32 if symmetric else 16)
    for slot in range(len(keys)):
        number = slot if slot + 20 >= len(stream[0]) else slot + 20  # of the stream, the last that came to this slot
        assert torch.equal(keys[slot], stream[0][number])
        assert key_id[slot] == stream[1][number]


def measuring():
    from contrastneg.negatives import AdaptiveCount, HitRate, LearnedPolicy, PopularSubset

    return [PopularSubset(popularity=HitRate(share=0.5), level="entry", count=6), AdaptiveCount(4), LearnedPolicy(3)]


@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_validation_test_and_prediction_change_nothing(pictures, name):
    method, data = method_of(name, stages=measuring()), data_of(pictures)
    trainer_of().fit(method, datamodule=data)
    before = state_of(method)
    views = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    trainer = trainer_of()
    for stage in (trainer.validate, trainer.test):
        stage(method, dataloaders=as_loader(views), verbose=False)
        assert_same_state(state_of(method), before)
    trainer.predict(method, dataloaders=as_loader([batch.view1 for batch in views]))
    assert_same_state(state_of(method), before)


@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_validation_images_are_not_taken_for_the_pretraining_images_of_the_same_number(pictures, name):
    from contrastneg.negatives import MemoryBank, MinedNeighbours, OracleSameLabel, SamplingCorrection

    seen = []

    class Spy(OracleSameLabel):
        def forward(self, negatives, clock):
            treated = super().forward(negatives, clock)
            seen.append((self.training, negatives, treated))
            return treated

    sources = [[MinedNeighbours(start=0)], [MemoryBank(count=8)]]
    for source, corrections in zip(sources, ([], [SamplingCorrection()]), strict=True):
        method, data = method_of(name, stages=[*source, Spy(), *corrections]), data_of(pictures)
        trainer_of(max_steps=3).fit(method, datamodule=data)
        views = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
        before = len(seen)
        trainer_of().validate(method, dataloaders=as_loader(views), verbose=False)  # the very indices of pretraining
        checked = [(negatives, treated) for training, negatives, treated in seen[before:] if not training]
        assert checked
        for negatives, treated in checked:
            assert (negatives.query_id < -1).all()
            own = negatives.query_id[:, None] == negatives.key_id
            assert (negatives.log_weight.isneginf() == own).all()  # own views alone are left out, no key of the queue
            assert own.any() == (name == "SimCLR")
            assert torch.equal(treated.kept, negatives.kept)  # no label is looked up


@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_sanity_steps_before_training_do_not_change_it(pictures, name):
    def fit(sanity):
        method, data = method_of(name, stages=measuring()), data_of(pictures)
        views = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
        data.val_dataloader = lambda: as_loader(views)
        losses = Losses()
        trainer_of(callbacks=[losses], num_sanity_val_steps=sanity).fit(method, datamodule=data)
        return losses.values

    assert fit(0) == fit(2)


def test_the_key_branch_moves_once_per_optimizer_step_and_takes_no_gradient(pictures, monkeypatch):
    from contrastneg import methods

    moves = []
    real = methods.update_key_branch_
    monkeypatch.setattr(methods, "update_key_branch_", lambda *args: (moves.append(1), real(*args)))
    method = method_of()
    start = copy.deepcopy(method.key_encoder)
    trainer_of(max_steps=2, accumulate_grad_batches=2).fit(method, datamodule=data_of(pictures))
    assert len(moves) == 2
    assert all(p.grad is None for p in method.key_encoder.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), method.key_encoder.parameters(), strict=True)]
    assert all(moved[:2])


@pytest.mark.parametrize("batch_norm", ["plain", "split", "shuffle", "sync"])
def test_every_batch_norm_setting_trains_on_one_cpu(pictures, batch_norm):
    losses = losses_of(method_of(batch_norm=batch_norm, bn_splits=4), data_of(pictures), max_steps=3)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[2] > 0


def test_split_batch_norm_changes_the_loss_and_shuffling_one_plain_batch_does_not(pictures):
    plain, split, shuffled = (
        losses_of(method_of(batch_norm=setting, bn_splits=4), data_of(pictures), max_steps=2)[1]
        for setting in ("plain", "split", "shuffle")
    )
    assert abs(split - plain) > 1e-3
    assert shuffled == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_stages_edit_what_the_loss_sees_and_keeping_everything_is_the_plain_method(pictures, name):
    from contrastneg import MoCHi, UniformSubset

    plain = losses_of(method_of(name), data_of(pictures), max_steps=3)
    everything = losses_of(method_of(name, stages=[UniformSubset(20)]), data_of(pictures), max_steps=3)
    assert_close(everything, plain, rtol=1e-4, atol=1e-6)
    fewer = losses_of(method_of(name, stages=[UniformSubset(2, mass="plain")]), data_of(pictures), max_steps=3)
    more = losses_of(method_of(name, stages=[MoCHi(8, 16, 4, warmup_epochs=0)]), data_of(pictures), max_steps=3)
    assert fewer[1] < plain[1] < more[1]


LOSSES = ["Debiased", "HardWeighted", "Decoupled", "SogCLR", "DecoupledWeighted", "DualTemperature", "RINCE", "CosineContrastive", "BPR",
          "Triplet", "Sigmoid", "BinaryCrossEntropy", "DualAMN", "Spectral", "Square", "AlignUniform"]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_every_loss_trains_and_is_the_loss_that_is_taken(pictures, name, loss):
    from contrastneg import objectives

    plain = losses_of(method_of(name), data_of(pictures), max_steps=3)
    other = losses_of(method_of(name, loss=getattr(objectives, loss)()), data_of(pictures), max_steps=3)
    assert all(math.isfinite(value) for value in other)
    assert other[1] != pytest.approx(plain[1], rel=1e-4)
    if name == "MoCo":
        assert other[0] == 0  # nothing is queued yet


@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_losses_without_their_correction_train_as_info_nce(pictures, name):
    from contrastneg.objectives import Debiased, HardWeighted

    plain = losses_of(method_of(name), data_of(pictures), max_steps=3)
    for loss in (Debiased(class_prior=0.0), HardWeighted(beta=0.0, class_prior=0.0)):
        assert_close(losses_of(method_of(name, loss=loss), data_of(pictures), max_steps=3), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_the_share_of_queries_at_the_floor_is_logged(pictures, name):
    from contrastneg.objectives import Debiased

    shares = []
    for prior in (0.001, 0.9):
        trainer = trainer_of(max_steps=3, log_every_n_steps=1)
        method = method_of(name, loss=Debiased(prior), temperature=0.5, symmetric=True) if name == "MoCo" else (
            method_of(name, loss=Debiased(prior), temperature=0.5)
        )  # fmt: skip
        trainer.fit(method, datamodule=data_of(pictures))
        shares.append(trainer.callback_metrics["loss/floor"].item())
    assert shares[0] == 0 < shares[1]


def test_impossible_lists_of_stages_are_refused_when_the_method_is_built():
    from contrastneg import MoCHi, UniformSubset

    with pytest.raises(ValueError, match="UniformSubset"):
        method_of(stages=[MoCHi(), UniformSubset()])


@pytest.mark.parametrize(
    ("wrong", "words"), [({"temperature": 0.0}, "temperature"), ({"queue_size": -1}, "queue_size")]
)
def test_settings_out_of_range_are_refused_by_name(wrong, words):
    with pytest.raises(ValueError, match=f"method.{words} is"):
        method_of(**wrong)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_two_seeded_runs_are_equal_in_every_precision_and_deterministic_mode_aborts_nothing(pictures, name, precision):
    def run():
        steps = 20 if precision == "32-true" else 8
        return losses_of(method_of(name), data_of(pictures), max_steps=steps, precision=precision, deterministic=True)

    try:
        first, second = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert first == second
    assert all(math.isfinite(loss) for loss in first)


def test_a_short_last_batch_trains(pictures):
    fourteen = pictures.subset(torch.arange(14))
    losses = losses_of(method_of("SimCLR"), data_of(fourteen, drop_last=False), max_epochs=2, max_steps=-1)
    assert len(losses) == 4


def test_a_checkpoint_alone_rebuilds_the_method_and_loads_with_weights_only(pictures, tmp_path):
    from contrastneg import MoCHi, load
    from contrastneg.methods import MoCo
    from contrastneg.objectives import Decoupled
    from contrastneg.schedules import Cosine

    method = method_of(
        loss=Decoupled(),
        stages=[MoCHi(8, 4, 2)],
        momentum=Cosine(0.9, 1.0),
        symmetric=True,
        batch_norm="split",
        bn_splits=2,
    )
    trainer = trainer_of()
    trainer.fit(method, datamodule=data_of(pictures))
    path = tmp_path / "x.ckpt"
    trainer.save_checkpoint(path, weights_only=False)
    assert torch.load(path, weights_only=True)["global_step"] == 6
    for loaded in (load(path), MoCo.load_from_checkpoint(path)):
        assert_same_state(state_of(loaded), state_of(method))
        assert loaded.objective == method.objective == Decoupled()
        assert loaded.stages == method.stages
        assert loaded.momentum == method.momentum
        assert len(loaded.queue) == len(method.queue)
    queues = [name for name in torch.load(path, weights_only=True)["state_dict"] if name.endswith("queue.keys")]
    assert len(queues) == 1


def test_numbers_of_numpy_and_tuples_in_the_settings_do_not_keep_a_checkpoint_from_loading(pictures, tmp_path):
    import numpy as np

    from contrastneg import load
    from contrastneg.negatives import SameCluster
    from contrastneg.schedules import Step

    method = method_of(
        temperature=np.float64(0.15), momentum=Step(np.float64(0.9), 0.5, (0.4, 0.8)), stages=[SameCluster((3, 5))]
    )
    trainer = trainer_of(max_steps=1)
    trainer.fit(method, datamodule=data_of(pictures))
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    held = torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]
    assert_plain(held)
    loaded = load(tmp_path / "x.ckpt")
    assert loaded.temperature == 0.15
    assert loaded.momentum == Step(0.9, 0.5, (0.4, 0.8))
    assert loaded.stages[0].clusters == (3, 5)


def assert_plain(setting):
    assert type(setting) in (str, int, float, bool, type(None), list, dict), setting
    for part in setting.values() if isinstance(setting, dict) else setting if isinstance(setting, list) else ():
        assert_plain(part)


def test_foreign_checkpoints_are_refused_by_load(tmp_path):
    from contrastneg import load

    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="it is no checkpoint of a run"):
        load(tmp_path / "other.ckpt")


def test_without_a_data_module_the_rate_is_scaled_by_the_loaders_batch_and_refused_without_one(pictures):
    from contrastneg import Optimizer
    from contrastneg.stepping import effective_rate

    def fitted(loader, scale):
        method = method_of("SimCLR", optimizer=Optimizer(lr=0.1, scale=scale))
        trainer_of(max_steps=1).fit(method, loader)
        return effective_rate(method).value

    data = data_of(pictures)
    data.setup("fit")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    whole = torch.utils.data.DataLoader(batches, batch_size=1, collate_fn=lambda one: one[0])
    assert fitted(as_loader(batches), "none") == 0.1
    with pytest.raises(ValueError, match="neither the data module nor the loader has a batch_size"):
        fitted(as_loader(batches), "linear")
    assert fitted(whole, "linear") == pytest.approx(0.1 / 256)


@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_support_views_are_embedded_without_gradient_and_reach_the_stage(pictures, name):
    from contrastneg.negatives import SupportViews

    seen = []

    class Watched(SupportViews):
        def __call__(self, negatives, clock):
            seen.append(negatives.support)
            return super().__call__(negatives, clock)

    method = method_of(name, stages=[Watched(views=3)])
    trainer_of(max_steps=2).fit(method, datamodule=data_of(pictures))
    assert seen[0].shape == ((8, 3, 16) if name == "MoCo" else (16, 3, 16))
    assert not seen[0].requires_grad
    assert_close(seen[0].norm(dim=2), torch.ones(seen[0].shape[:2]))
    assert not torch.equal(seen[0][:, 0], seen[0][:, 1])


def test_stages_without_a_temperature_of_their_own_take_the_methods():
    from contrastneg.negatives import Clock, HardnessWeight, Negatives

    x = torch.nn.functional.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    table = Negatives.of(x[:6], x[:6], x[6:], query_id=torch.arange(6), key_id=torch.arange(10, 34))
    of_method = HardnessWeight()(table, Clock(0, 1, 0.0, 0, temperature=0.07)).log_weight
    assert_close(of_method, HardnessWeight(temperature=0.07)(table, Clock(0, 1, 0.0, 0)).log_weight)
    assert not torch.equal(of_method, HardnessWeight()(table, Clock(0, 1, 0.0, 0, temperature=0.2)).log_weight)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("kind", ["MoCo", "SimCLR"])
def test_what_is_no_list_of_stages_and_no_loss_is_refused_in_one_line(kind):
    import contrastneg as cn

    mochi, loss = cn.MoCHi(pool=10), cn.objectives.Debiased()
    for wrong, words in (
        ({"stages": ["MoCHi"]}, "method.stages[0] is 'MoCHi': give a stage, for instance MoCHi()"),
        ({"stages": mochi}, "method.stages is of type MoCHi: give a list of stages, for instance [MoCHi()]"),
        ({"stages": [cn.MoCHi]}, "method.stages[0] is the class MoCHi itself: give an object, MoCHi(...)"),
        ({"stages": [mochi, loss]}, "method.stages[1]: Debiased is a loss, not a stage: it belongs to method.loss"),
        ({"loss": cn.objectives.Debiased}, "method.loss is the class Debiased itself: give an object, Debiased(...)"),
        ({"loss": mochi}, "method.loss: MoCHi is a stage, not a loss: it belongs to method.stages"),
        ({"loss": "Debiased"}, "method.loss is 'Debiased': give a loss, for instance InfoNCE()"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            getattr(cn, kind)(**wrong)
