"""What all eliminating stages have in common, and those that need nothing but the table or true labels."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from contrastneg.losses import info_nce
from contrastneg.negatives import (
    AbovePositive,
    Clock,
    Facts,
    GlobalQuantile,
    MetadataTiers,
    Negatives,
    OracleSameLabel,
    Record,
    Redundant,
    SameCluster,
    SupportMemory,
    SupportViews,
    Tier,
    UniformSubset,
    check_pipeline,
    run_stages,
)
from contrastneg.objectives import MultiPositive

IMAGES, DIM, QUERIES, KEYS = 60, 8, 5, 40
NOW = Clock(50, 100, 5.0, 0)
LABELS = torch.arange(IMAGES) % 4


def unit(*shape, seed=0, dtype=torch.float32):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1).to(dtype)


def embeddings(dtype=torch.float32):
    """One for each image, around a centre per class."""
    return torch.nn.functional.normalize(unit(4, DIM, seed=1)[LABELS] + 0.4 * unit(IMAGES, DIM, seed=2), dim=1).to(
        dtype
    )


def table(form="shared", dtype=torch.float32, keys_dtype=None, n_keys=KEYS):
    """Queries are images 0-4, keys 0-39, so each query's own image is removed."""
    x = embeddings(dtype)
    query = torch.nn.functional.normalize(x[:QUERIES] + 0.2 * unit(QUERIES, DIM, seed=3, dtype=dtype), dim=1)
    key_id, keys = torch.arange(n_keys), x[:n_keys].to(keys_dtype or dtype)
    if form == "per query":
        keys, key_id = keys.expand(QUERIES, -1, -1).clone(), key_id.expand(QUERIES, -1).clone()
    support = torch.nn.functional.normalize(x[:QUERIES, None] + 0.3 * unit(QUERIES, 3, DIM, seed=4, dtype=dtype), dim=2)
    query = query.requires_grad_()
    return Negatives.of(query, x[:QUERIES], keys, query_id=torch.arange(QUERIES), key_id=key_id, support=support)


def prepared(stage):
    """A stage that has seen the data, in the middle of a run."""
    columns = {
        "series": LABELS.clone(),
        "duplicate_of": torch.where(torch.arange(IMAGES) >= 8, torch.arange(IMAGES) - 8, -1),
    }
    stage.begin(Facts(IMAGES, DIM, LABELS, columns))
    stage.refresh(embeddings, NOW)
    if isinstance(stage, GlobalQuantile):
        stage.threshold.fill_(0.6)
    stage.update(embeddings(), torch.arange(IMAGES), NOW)
    return stage.eval() if isinstance(stage, torch.nn.Module) else stage


MAKE = {
    "OracleSameLabel": lambda: OracleSameLabel(),
    "AbovePositive": lambda: AbovePositive(margin=0.5),
    "Redundant": lambda: Redundant(threshold=0.8, pool=20),
    "SameCluster": lambda: SameCluster(clusters=(4, 7), acceptance=0.9),
    "SupportViews": lambda: SupportViews(threshold=0.6),
    "SupportMemory": lambda: SupportMemory(threshold=0.6),
    "GlobalQuantile": lambda: GlobalQuantile(begin_at=0.0),
    "MetadataTiers": lambda: MetadataTiers([Tier("duplicate_of", refers="image")]),
}
ALL = pytest.mark.parametrize("name", MAKE)


def stage_of(name):
    return prepared(MAKE[name]())


def loss(negatives):
    return info_nce(negatives.positive_similarity, negatives.similarity, negatives.log_weight, temperature=0.1)


@ALL
@pytest.mark.parametrize("form", ["shared", "per query"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)])
def test_some_candidates_go_and_no_similarity_changes(name, form, dtypes):
    before = table(form, *dtypes)
    after = stage_of(name)(before, NOW)
    assert 0 < after.kept.sum() < before.kept.sum()
    assert not (after.kept & ~before.kept).any()
    assert after.similarity is before.similarity
    assert after.log_weight.dtype == before.log_weight.dtype
    assert not after.log_weight.requires_grad
    if name != "GlobalQuantile":  # which preserves mass, as released
        assert after.log_weight[after.kept].abs().max() == 0


@ALL
def test_keys_of_each_query_and_shared_keys_give_the_same(name):
    stage = stage_of(name)
    assert torch.equal(stage(table("shared"), NOW).kept, stage(table("per query"), NOW).kept)


@ALL
def test_the_order_of_candidates_does_not_matter_and_the_same_step_finds_the_same(name):
    stage, before = stage_of(name), table()
    order = torch.randperm(KEYS, generator=torch.Generator().manual_seed(9))
    turned = Negatives.of(
        before.query,
        before.positive,
        before.keys[order],
        query_id=before.query_id,
        key_id=order,
        support=before.support,
    )
    assert torch.equal(stage(turned, NOW).kept, stage(before, NOW).kept[:, order])
    assert torch.equal(stage(before, NOW).kept, stage(before, NOW).kept)


@pytest.mark.parametrize("name", [name for name in MAKE if name != "AbovePositive"])
def test_synthetic_candidates_and_removed_ones_are_left_alone(name):
    stage, gone = stage_of(name), torch.zeros(QUERIES, KEYS, dtype=torch.bool)
    gone[:, ::3] = True
    before = table().removed(gone).appended(torch.full((QUERIES, 3), 0.999))
    after = stage(before, NOW)
    assert after.kept[:, KEYS:].all()
    assert not after.kept[:, :KEYS][gone].any()


@ALL
def test_an_empty_queue_passes_through(name):
    before = table(n_keys=0)
    assert stage_of(name)(before, NOW).similarity.shape == (QUERIES, 0)


@pytest.mark.parametrize("name", ["OracleSameLabel", "SameCluster", "GlobalQuantile", "MetadataTiers"])
def test_images_that_the_tables_do_not_know_are_nobodys_false_negatives(name):
    before = replace(table(), query_id=torch.tensor([-1, IMAGES, 10**6, -1, IMAGES]))
    stage = stage_of(name)
    assert torch.equal(stage(before, NOW).kept, before.kept)
    if name != "GlobalQuantile":  # which asks who the query is alone
        assert torch.equal(stage(replace(table(), key_id=torch.full((KEYS,), -1)), NOW).kept, table().kept)


@ALL
def test_a_row_with_nothing_left_has_loss_zero_and_no_gradient_and_the_others_have(name):
    before = table(dtype=torch.float64)
    gone = torch.zeros(QUERIES, KEYS, dtype=torch.bool)
    gone[2] = True
    values = loss(stage_of(name)(before.removed(gone), NOW))
    (gradient,) = torch.autograd.grad(values.sum(), before.query)
    assert values[2] == 0
    assert gradient[2].abs().max() == 0
    assert gradient.isfinite().all()
    assert (values[[0, 1, 3, 4]] > 0).all()


@ALL
def test_elimination_never_raises_the_loss_and_commutes_with_weights(name):
    before, stage = table(dtype=torch.float64), stage_of(name)
    if name == "GlobalQuantile":
        stage.mass = "plain"
    after = stage(before, NOW)
    assert (loss(after) <= loss(before) + 1e-12).all()
    weight = torch.linspace(-1, 1, KEYS, dtype=torch.double)
    weighed_first = stage(replace(before, log_weight=before.log_weight + weight), NOW)
    assert_close(loss(weighed_first), loss(replace(after, log_weight=after.log_weight + weight)))


@pytest.mark.parametrize("name", ["OracleSameLabel", "SameCluster", "SupportViews", "SupportMemory", "GlobalQuantile"])
def test_attraction_marks_what_elimination_removes_and_keeps_every_weight(name):
    before, stage = table(), stage_of(name)
    removed = before.kept & ~stage(before, NOW).kept
    if name == "SupportViews":
        stage = replace(stage, action="attract")
    else:
        stage.action = "attract"
    after = stage(before, NOW)
    assert stage.attracts
    assert torch.equal(after.attracted, removed)
    assert torch.equal(after.log_weight, before.log_weight)
    assert torch.equal(after.repelled, before.kept & ~removed)


def test_attracted_candidates_stay_consistent_when_columns_go_or_come():
    before = prepared(OracleSameLabel(action="attract"))(table(), NOW)
    gone = torch.zeros(QUERIES, KEYS, dtype=torch.bool)
    gone[:, :20] = True
    thinned = before.removed(gone)
    assert torch.equal(thinned.attracted, before.attracted & ~gone)
    grown = thinned.appended(torch.zeros(QUERIES, 2))
    assert grown.attracted.shape == grown.similarity.shape
    assert not grown.attracted[:, KEYS:].any()
    twice = before.attracting(torch.ones(QUERIES, KEYS, dtype=torch.bool))
    assert torch.equal(twice.attracted, before.kept)  # never what was removed


def test_the_oracle_removes_exactly_the_known_candidates_of_the_querys_class():
    stage, before = OracleSameLabel(), table()
    labels = LABELS.clone()
    labels[[1, 5, 12]] = -1
    stage.begin(Facts(IMAGES, DIM, labels))
    expected = before.kept & ~((labels[:QUERIES, None] == labels[:KEYS]) & (labels[:QUERIES, None] >= 0))
    assert torch.equal(stage(before, NOW).kept, expected)
    assert torch.equal(stage(before, NOW).kept[1], before.kept[1])
    assert stage.oracle
    with pytest.raises(ValueError, match="OracleSameLabel needs labels"):
        OracleSameLabel().begin(Facts(IMAGES, DIM))


def test_attraction_with_true_labels_over_both_views_of_a_batch_is_the_supervised_contrastive_loss():
    labels, t = torch.tensor([0, 1, 0, 2, 1, 0]), 0.3
    view1, view2 = unit(6, DIM, dtype=torch.double), unit(6, DIM, seed=8, dtype=torch.double)
    z, ids = torch.cat([view1, view2]), torch.arange(6).repeat(2)
    stage = OracleSameLabel(action="attract")
    stage.begin(Facts(6, DIM, labels))
    after = stage(Negatives.of(z, torch.cat([view2, view1]), z, query_id=ids, key_id=ids), NOW)
    expected = []
    for a in range(12):  # SupCon, L_out
        others = [b for b in range(12) if b != a]
        lse = torch.stack([z[a] @ z[b] / t for b in others]).logsumexp(0)
        positives = [b for b in others if labels[b % 6] == labels[a % 6]]
        expected.append(-torch.stack([z[a] @ z[b] / t - lse for b in positives]).mean())
    assert_close(MultiPositive()(after, t, NOW), torch.stack(expected))


def test_nothing_stays_above_the_positive_less_the_margin():
    before = table(dtype=torch.float64)
    for margin in (-0.5, 0.0, 0.3):
        after = AbovePositive(margin, spare=False)(before, NOW)
        expected = before.kept & (before.similarity <= before.positive_similarity[:, None] - margin)
        assert torch.equal(after.kept, expected)


def test_above_the_positive_spares_the_easiest_of_a_row_that_would_lose_all():
    before = table()
    after = AbovePositive(margin=2.0)(before, NOW)
    assert after.kept.sum(1).tolist() == [1] * QUERIES
    easiest = before.similarity.masked_fill(~before.kept, 2).argmin(1)
    assert torch.equal(after.kept.float().argmax(1), easiest)
    assert AbovePositive(margin=2.0, spare=False)(before, NOW).kept.sum() == 0
    assert AbovePositive(margin=2.0, begin_at=0.6)(before, NOW) is before


def greedy(keys, similarity, kept, threshold, pool):
    """Slow oracle of the suppression for one row."""
    order = [j for j in similarity.argsort(descending=True).tolist() if kept[j]][:pool]
    stay, gone = [], []
    for j in order:
        (gone if any(keys[j] @ keys[i] > threshold for i in stay) else stay).append(j)
    return gone


@pytest.mark.parametrize("pool", [1, 7, 500])
@pytest.mark.parametrize("form", ["shared", "per query"])
def test_redundant_candidates_are_those_of_the_greedy_walk(pool, form, monkeypatch):
    from contrastneg.negatives import eliminate

    monkeypatch.setattr(eliminate, "CHUNK", 3000)  # several parts
    before = table(form, dtype=torch.float64)
    after = Redundant(threshold=0.7, pool=pool)(before, NOW)
    for row in range(QUERIES):
        keys = before.keys if form == "shared" else before.keys[row]
        gone = greedy(keys, before.similarity[row].detach(), before.kept[row], 0.7, pool)
        expected = before.kept[row].clone()
        expected[gone] = False
        assert torch.equal(after.kept[row], expected)
    if pool == 500:
        cosine = before.keys @ before.keys.transpose(-1, -2)
        for row in range(QUERIES):
            left = after.kept[row].nonzero()[:, 0]
            own = cosine if form == "shared" else cosine[row]
            assert own[left][:, left].fill_diagonal_(0).max() <= 0.7
        hardest = before.similarity.masked_fill(~before.kept, -2).argmax(1)
        assert after.kept.gather(1, hardest[:, None]).all()


def test_no_candidate_is_redundant_at_threshold_one():
    assert torch.equal(Redundant(threshold=1.0)(table(), NOW).kept, table().kept)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AbovePositive(margin=3), "AbovePositive.margin is 3: give a number from -2 to 2"),
        (lambda: AbovePositive(begin_at=-1), "AbovePositive.begin_at is -1"),
        (lambda: Redundant(threshold=1.5), "Redundant.threshold is 1.5"),
        (lambda: Redundant(pool=0), "Redundant.pool is 0: give a number of at least 1"),
        (lambda: SupportViews(views=0), "SupportViews.views is 0"),
        (lambda: SupportMemory(depth=-1), "SupportMemory.depth is -1"),
        (lambda: SupportMemory(threshold=7), "SupportMemory.threshold is 7"),
        (lambda: GlobalQuantile(share=1.2), "GlobalQuantile.share is 1.2"),
        (lambda: SameCluster(clusters=()), "SameCluster.clusters is []"),
        (lambda: SameCluster(clusters=(3, 0)), "SameCluster.clusters is [3, 0]"),
        (lambda: SameCluster(acceptance=1.1), "SameCluster.acceptance is 1.1"),
        (lambda: SameCluster(every=0), "SameCluster.every is 0"),
        (lambda: SameCluster(temperature=0), "SameCluster.temperature is 0"),
        (lambda: MetadataTiers([]), "MetadataTiers.tiers is empty"),
        (lambda: Tier("x", weight=-1), "Tier.weight is -1"),
        (lambda: Tier("x", within=3), "time names no column"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as refusal:
        make()
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@ALL
def test_what_works_by_image_cannot_follow_candidates_without_images(name):
    stage = MAKE[name]()
    provides = {"queue", "support"} if name != "SupportViews" else {"queue", "id"}
    if stage.needs:
        with pytest.raises(ValueError, match=f"{name} needs"):
            check_pipeline([stage], provides)
    check_pipeline([stage], {"queue", "id", "support"})
    assert "iid" in stage.breaks  # a debiased loss would correct for what is gone already


def test_precision_and_recall_are_counted_over_known_pairs_not_yet_removed():
    record, labels = Record(LABELS.clone()), LABELS.clone()
    labels[[3, 9]] = -1
    record.label_table = labels
    before = table()
    first = AbovePositive(margin=0.05)
    second = prepared(SameCluster(clusters=(4,), acceptance=0.8))
    middle = first(before, NOW)
    last = second(middle, replace(NOW, stage=1))
    run_stages(before, [first, second, UniformSubset(4)], NOW, record)
    numbers = {key: float(number) for key, number in record.numbers.items()}
    for name, old, new in (("1_AbovePositive", before, middle), ("2_SameCluster", middle, last)):
        hits = found = found_known = alike = 0
        for i in range(QUERIES):
            for j in range(KEYS):
                known = labels[i] >= 0 and labels[j] >= 0
                if not old.kept[i, j]:
                    continue
                taken = not new.kept[i, j]
                found += taken
                found_known += taken and known
                alike += bool(known and labels[i] == labels[j])
                hits += bool(taken and known and labels[i] == labels[j])
        assert hits > 0
        assert numbers[f"negatives/{name}/precision"] == pytest.approx(hits / found_known)
        assert numbers[f"negatives/{name}/recall"] == pytest.approx(hits / alike)
        assert numbers[f"negatives/{name}/found"] == pytest.approx(found / QUERIES)
    assert numbers["negatives/2_SameCluster/accepted"] == pytest.approx(0.8)
    assert "negatives/3_UniformSubset/precision" not in numbers


def test_what_is_attracted_counts_as_found_and_nothing_found_has_no_precision():
    record = Record(LABELS)
    stages = [prepared(OracleSameLabel(action="attract")), Redundant(threshold=1.0)]
    run_stages(table(), stages, NOW, record)
    assert record.numbers["negatives/1_OracleSameLabel/precision"] == 1
    assert record.numbers["negatives/1_OracleSameLabel/recall"] == 1
    assert record.numbers["negatives/2_Redundant/precision"].isnan()
    assert record.numbers["negatives/2_Redundant/found"] == 0
    unlabelled = Record()
    run_stages(table(), stages, NOW, unlabelled)
    assert "negatives/1_OracleSameLabel/found" in unlabelled.numbers
    assert "negatives/1_OracleSameLabel/precision" not in unlabelled.numbers


@pytest.mark.parametrize("name", MAKE)
def test_settings_come_back_from_a_checkpoint(name):
    from contrastneg import Backbone, Head, MoCo
    from contrastneg.config import build_method, plain

    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=DIM), "queue_size": 20}
    stages = [MAKE[name]()]
    again = build_method(MoCo, dict(MoCo(**small, stages=stages).hparams))
    assert plain(again.stages) == plain(stages)
    assert type(again.stages[0]) is type(stages[0])


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*")
@pytest.mark.parametrize("method", ["MoCo", "SimCLR"])
def test_they_work_together_in_a_real_run_and_what_they_learn_is_in_its_checkpoint(method, tmp_path):
    import pytorch_lightning as pl

    from contrastneg import Backbone, Head, methods
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    def build():
        torch.manual_seed(0)
        stages = [
            MetadataTiers([Tier("duplicate_of", refers="image"), Tier("location", "weigh", 2.0)]),
            SupportMemory(depth=1, threshold=0.9),
            GlobalQuantile(begin_at=0.0, share=0.1, rate=0.5),
            AbovePositive(margin=-0.2),
            Redundant(threshold=0.99, pool=10),
            UniformSubset(8),
        ]
        small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16), "stages": stages}
        return getattr(methods, method)(**small | ({"queue_size": 50} if method == "MoCo" else {}))

    model, quiet = build(), {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **quiet,
    )
    trainer.fit(model, datamodule=PretrainData(shapes("train").subset(torch.arange(40)), Views(size=16), batch_size=8))
    assert 0 < float(trainer.logged_metrics["negatives/5_Redundant/kept"]) < 50
    assert -1 <= float(trainer.logged_metrics["negatives/3_GlobalQuantile/threshold"]) < 1
    assert model.stages[2].visits.sum() == (72 if method == "MoCo" else 80)  # the first step of MoCo has no candidate
    assert (model.stages[1].seen == (2 if method == "MoCo" else 4)).all()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = build()
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(again.stages[1].past, model.stages[1].past)
    assert torch.equal(again.stages[2].threshold, model.stages[2].threshold)
