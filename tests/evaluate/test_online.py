"""Scores along the way leave no trace in what is trained."""

import copy
import io

import pytest
import pytorch_lightning as pl
import torch

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
)


@pytest.fixture(scope="module")
def pictures():
    from contrastneg.data.shapes import shapes

    return shapes("train").subset(torch.arange(0, 2000, 40))


def fit(pictures, *callbacks, epochs=2, **options):
    from contrastneg import Backbone, Head, MoCo, Optimizer, Views
    from contrastneg.data.module import PretrainData

    torch.manual_seed(0)
    method = MoCo(
        Backbone(name="resnet9", width=0.125), Head(out=16), queue_size=20, momentum=0.9, optimizer=Optimizer(lr=0.1)
    )
    data = PretrainData(pictures, Views(size=16), pictures, pictures.subset(torch.arange(20)), batch_size=10)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(method, datamodule=data)
    return method, trainer


def probe(pictures, **options):
    from contrastneg.evaluate.online import OnlineProbe

    table = torch.full((int(pictures.image_id.max()) + 1,), -1)
    table[pictures.image_id] = pictures.labels
    return OnlineProbe(len(pictures.classes), table, **options)


def assert_same(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("lr", [0.0, 100.0])
def test_the_probes_rate_changes_nothing_but_the_probe(pictures, lr):
    alone, _ = fit(pictures, gradient_clip_val=0.5)
    watched, trainer = fit(pictures, probe(pictures, lr=lr), gradient_clip_val=0.5)
    assert_same(alone, watched)
    assert 0 <= float(trainer.callback_metrics["probe/accuracy"]) <= 1


def test_a_probe_that_learns_gets_better_and_one_of_rate_zero_stays(pictures):
    features = torch.nn.functional.one_hot(pictures.labels, 16).float()
    features += 0.3 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    for lr, low, high in ((0.0, 0.0, 0.3), (0.05, 0.9, 1.0)):
        one = probe(pictures, lr=lr)
        for _ in range(60):
            one.right, one.seen = 0, 0
            one.learn(features, pictures.labels)
        assert low <= float(one.right) / float(one.seen) <= high


def test_the_probe_reads_the_backbone_and_not_the_projector(pictures):
    fit(pictures, one := probe(pictures), epochs=1)
    assert one.layer.in_features == 64


def test_the_probe_restored_from_its_state_goes_on_as_if_unbroken(pictures):
    whole = probe(pictures, lr=0.01)
    fit(pictures, whole, epochs=1)
    state = copy.deepcopy(whole.state_dict())
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    resumed = probe(pictures, lr=0.01)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    features = torch.randn(6, 64)
    for one in (whole, resumed):
        one.learn(features, pictures.labels[:6])
    assert_same(whole.layer, resumed.layer)
    assert (int(whole.right), int(whole.seen)) == (int(resumed.right), int(resumed.seen))


def test_a_probe_resumed_between_epochs_counts_the_new_epoch_from_zero(pictures):
    from unittest.mock import MagicMock

    whole = probe(pictures)
    fit(pictures, whole, epochs=1)
    resumed = probe(pictures)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.seen == 50
    outputs = {"features": torch.randn(6, 64), "image_id": pictures.image_id[:6]}
    resumed.on_train_batch_end(MagicMock(spec=pl.Trainer, current_epoch=1), pl.LightningModule(), outputs, None, 0)
    assert resumed.seen == 6


def test_a_batch_without_labels_or_with_features_that_are_not_finite_teaches_the_probe_nothing(pictures):
    from contrastneg.evaluate.online import OnlineProbe

    one = OnlineProbe(2, torch.tensor([0, 1, -1]))
    one.learn(torch.randn(2, 8), torch.tensor([0, 1]))
    before = {name: tensor.clone() for name, tensor in one.layer.state_dict().items()}
    one.learn(torch.randn(2, 8), torch.tensor([-1, -1]))
    one.learn(torch.full((2, 8), torch.nan), torch.tensor([0, 1]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.layer.state_dict().items())
    assert int(one.seen) == 2


def test_a_label_beyond_the_classes_is_refused_by_name(pictures):
    from contrastneg.evaluate.online import OnlineProbe

    with pytest.raises(ValueError, match="label 5 of the pretraining images is not among 4 classes"):
        OnlineProbe(4, torch.tensor([0, 1, 2, 5]))


def test_knn_along_the_way_changes_nothing_and_is_the_score_of_the_final_encoder(pictures):
    from contrastneg.evaluate.online import OnlineKnn

    alone, _ = fit(pictures)
    watched, trainer = fit(pictures, knn := OnlineKnn(1, k=5))
    assert_same(alone, watched)
    assert [epoch for epoch, _ in knn.history] == [0, 1]
    assert knn.history[-1][1] == pytest.approx(float(trainer.callback_metrics["knn/top1"]))
    assert knn.seconds > 0


@pytest.mark.parametrize(("every", "epochs"), [(0, []), (2, [1, 3]), (3, [2, 3]), (9, [3])])
def test_knn_comes_every_n_epochs_and_after_the_last(pictures, every, epochs):
    from contrastneg.evaluate.online import OnlineKnn

    fit(pictures, knn := OnlineKnn(every, k=5), epochs=4)
    assert [epoch for epoch, _ in knn.history] == epochs
