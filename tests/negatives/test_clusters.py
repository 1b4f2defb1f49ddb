"""False negatives by pseudo-labels: who is believed when, several granularities, resuming, a run."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from contrastneg.losses import info_nce
from contrastneg.negatives import Clock, Facts, Negatives, OracleSameLabel, SameCluster
from contrastneg.pseudolabels import pair_scores
from contrastneg.schedules import Step

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*val_dataloader.*",
    "ignore:.*clusters were asked for.*",
)
IMAGES, CLASSES, DIM = 120, 5, 16
LABELS = torch.arange(IMAGES) % CLASSES


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def embeddings(spread=0.05):
    draw = torch.Generator().manual_seed(0)
    centre = unit(torch.randn(CLASSES, DIM, generator=draw, dtype=torch.double))
    return unit(centre[LABELS] + spread * torch.randn(IMAGES, DIM, generator=draw, dtype=torch.double))


def clock(progress=1.0, step=None):
    return Clock(step if step is not None else round(1000 * progress), 1000, 10 * progress, 0)


def table(queries=12):
    x = embeddings()
    return Negatives.of(x[:queries], x[:queries], x, query_id=torch.arange(queries), key_id=torch.arange(IMAGES))


def stage(x=None, at=1.0, **settings):
    made = SameCluster(**{"clusters": (CLASSES,), "restarts": 8} | settings)
    made.begin(Facts(IMAGES, DIM))
    made.refresh(lambda: (embeddings() if x is None else x).float(), clock(at))
    return made


def loss(negatives):
    return info_nce(negatives.positive_similarity, negatives.similarity, negatives.log_weight, temperature=0.2)


def test_clusters_that_are_the_classes_remove_exactly_the_same_class_candidates():
    oracle = OracleSameLabel()
    oracle.begin(Facts(IMAGES, DIM, LABELS))
    made = stage()
    assert pair_scores(made.label[0], LABELS) == {"precision": 1, "recall": 1}
    assert torch.equal(made(table(), clock()).kept, oracle(table(), clock()).kept)


def test_nothing_believed_is_the_table_as_it_was_and_asks_for_no_embeddings():
    made = SameCluster(clusters=(CLASSES,))
    made.begin(Facts(IMAGES, DIM))
    made.refresh(lambda: pytest.fail("a pass over the data for nothing"), clock(0.0))
    after = made(table(), clock(0.0))
    assert torch.equal(after.log_weight, table().log_weight)
    assert torch.equal(loss(after), loss(table()))
    assert made.report()["accepted"] == 0


def test_more_is_believed_as_the_run_goes_on_and_for_fixed_clusters_what_was_believed_stays():
    made = stage(at=0.1, every=1000)
    before, found = made.believed.clone(), []
    for at in (0.2, 0.5, 1.0):
        made.refresh(lambda: pytest.fail("not due"), clock(at))
        assert made.believed.sum() == round(at * IMAGES)
        assert not (before & ~made.believed).any()
        before = made.believed.clone()
        found.append(int((table().kept & ~made(table(), clock(at)).kept).sum()))
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_both_query_and_candidate_must_be_believed():
    made = stage(at=0.5)
    believed, label = made.believed[0], made.label[0]
    gone = table().kept & ~made(table(), clock(0.5)).kept
    expected = (label[:12, None] == label) & believed[:12, None] & believed
    assert torch.equal(gone, expected & table().kept)
    assert not believed[:12].all()


def test_other_names_of_the_clusters_change_nothing():
    made = stage(at=0.7)
    first = made(table(), clock(0.7))
    made.label.copy_((made.label + 2) % CLASSES)
    assert torch.equal(made(table(), clock(0.7)).log_weight, first.log_weight)


def test_random_clusters_of_equal_size_remove_their_share():
    made = stage(clusters=(4,))
    made.label[0] = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0)) % 4
    gone = table().kept & ~made(table(), clock()).kept
    assert (gone.sum(1) == IMAGES / 4 - 1).all()


def test_together_in_any_or_all_granularities_or_in_one_that_is_drawn_for_each_query():
    made = stage(clusters=(3, 9), levels="any")
    same = made.label[:, :12, None] == made.label[:, None]
    assert torch.equal(~made(table(), clock()).kept, same.any(0) | ~table().kept)
    made.levels = "all"
    assert torch.equal(~made(table(), clock()).kept, same.all(0) | ~table().kept)
    made.levels = "drawn"
    times = torch.zeros(2)
    for step in range(60):
        gone = ~made(table(), clock(step=step)).kept
        of_level = torch.stack([(gone == (level | ~table().kept)).all(1) for level in same])  # (2, 12)
        assert of_level.any(0).all()
        times += (of_level & ~of_level.all(0)).sum(1)
    assert abs(times[0] / times.sum() - 0.5) < 0.06


def test_the_drawn_granularity_gives_the_mean_of_the_granularities_losses():
    made = stage(clusters=(3, 9))
    drawn = torch.stack([loss(made(table(), clock(step=step))) for step in range(800)]).mean(0)
    each = []
    for level in range(2):
        one = stage(clusters=((3, 9)[level],))
        one.label[0] = made.label[level]
        each.append(loss(one(table(), clock())))
    torch.testing.assert_close(drawn, torch.stack(each).mean(0), rtol=0.05, atol=0.02)


def test_one_cluster_for_everything_removes_nothing_unless_asked_to():
    made = stage(clusters=(1,))
    assert torch.equal(made(table(), clock()).kept, table().kept)
    made.emptied = "remove"
    query = embeddings()[:12].requires_grad_()
    after = made(replace(table(), query=query, similarity=query @ embeddings().T), clock())
    values = loss(after)
    (gradient,) = torch.autograd.grad(values.sum(), query)
    assert values.abs().max() == 0
    assert gradient.abs().max() == 0


def test_images_without_embedding_are_in_no_cluster():
    x = embeddings()
    x[::7] = torch.nan
    made = stage(x)
    assert (made.label[0, ::7] == -1).all()
    assert not made.believed[0, ::7].any()
    assert torch.equal(made(table(), clock()).kept[:, ::7], table().kept[:, ::7])
    assert torch.equal(made(table(), clock()).kept[::7], table().kept[::7])


def test_more_clusters_than_images_are_refused_before_the_first_step_or_when_it_shows():
    with pytest.raises(ValueError, match=r"SameCluster.clusters is \[5, 121\] but there are 120 images"):
        SameCluster(clusters=(5, 121)).begin(Facts(IMAGES, DIM))
    x = embeddings()
    x[:60] = torch.nan
    with pytest.raises(ValueError, match="90 clusters of 60 images"):
        stage(x, clusters=(90,))


def test_clustering_is_repeated_when_due():
    made, asked = SameCluster(clusters=(CLASSES,), every=3, acceptance=0.5), []
    made.begin(Facts(IMAGES, DIM))
    for epoch in range(7):

        def give(epoch=epoch):
            asked.append(epoch)
            return embeddings().float()

        made.refresh(give, Clock(epoch, 7, float(epoch), 0))
    assert asked == [0, 3, 6]


def test_what_is_remembered_survives_a_checkpoint():
    made = stage(at=0.5, clusters=(3, 9))
    again = SameCluster(clusters=(3, 9))
    again.load_state_dict(made.state_dict())
    assert set(made.state_dict()) == {"label", "confidence", "believed"}
    for step in range(3):
        assert torch.equal(made(table(), clock(step=step)).log_weight, again(table(), clock(step=step)).log_weight)


class Log(pl.Callback):
    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.rows.append({name: float(number) for name, number in trainer.logged_metrics.items()})


@pytest.mark.parametrize("name", ["MoCo", "SimCLR"])
def test_the_log_of_a_short_real_run_shows_precision_and_recall(name):
    from contrastneg import Backbone, Head, methods
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    torch.manual_seed(0)
    made = SameCluster(clusters=(16,), acceptance=Step(0.2, 4.0, (0.4,)))
    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16), "stages": [made]}
    model = getattr(methods, name)(**small | ({"queue_size": 100} if name == "MoCo" else {}))
    source = PretrainData(shapes("train").subset(torch.arange(160)), Views(size=16), batch_size=32)
    log = Log()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False}
    pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        callbacks=[log],
        **quiet,
    ).fit(model, datamodule=source)
    accepted = [row["negatives/1_SameCluster/accepted"] for row in log.rows]
    assert accepted == pytest.approx([0.2, 0.2, 0.8, 0.8])
    recall = [row["negatives/1_SameCluster/recall"] for row in log.rows]
    assert sum(recall[:2]) < sum(recall[2:])
    assert 0 < log.rows[-1]["negatives/1_SameCluster/precision"] <= 1
    assert made.label.shape == (1, 160)


def test_true_labels_of_cifar10_as_clusters_remove_exactly_the_same_class(shared):
    from contrastneg.data.sources import open_source
    from contrastneg.negatives import Record, run_stages

    labels = open_source(str(shared / "data/cifar10/train.parquet"), split="train").labels[:3000]
    x = unit(torch.randn(3000, 8, generator=torch.Generator().manual_seed(0)))
    before = Negatives.of(x[:64], x[:64], x, query_id=torch.arange(64), key_id=torch.arange(3000))
    made, record = SameCluster(clusters=(10,)), Record(labels)
    made.begin(Facts(3000, 8))
    made.label[0], made.believed[0] = labels, True
    after = run_stages(before, [made], clock(), record)
    assert torch.equal(before.kept & ~after.kept, before.kept & (labels[:64, None] == labels))
    assert record.numbers["negatives/1_SameCluster/precision"] == record.numbers["negatives/1_SameCluster/recall"] == 1
    assert record.numbers["negatives/1_SameCluster/same_class"] == 0
    assert 0.08 < record.numbers["negatives/all/same_class"] < 0.12
