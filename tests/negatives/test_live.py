"""How hard the negatives of a step are: by loops in float64, as in the analysis, and at no change of the loss."""

import math
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from clouds import cloud, unit

from contrastneg import Backbone, Head, MoCo, Views
from contrastneg.analysis import (
    effective_negatives,
    false_negative_detectors,
    gradient_shares,
    hardness_bins,
    negative_counts,
)
from contrastneg.candidates import CandidateShares
from contrastneg.contrast import contrast
from contrastneg.data.module import PretrainData
from contrastneg.data.shapes import shapes
from contrastneg.negatives import AbovePositive, Clock, HardestSubset, MoCHi, Negatives, Record, run_stages
from contrastneg.negatives.live import BINS, CELLS, ROWS, first_rows, hardness_ratios

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)

T = 0.3
CLOCK = Clock(1, 1, 20.0, 0)
OF_CLASSES = {"false_mass", *(f"same_class_{name}" for name in BINS)}


def table(images=40):
    x, label, positive = cloud(images)
    keys, second = (torch.from_numpy(unit(part)).float() for part in (x, positive))
    image = torch.arange(images)
    return Negatives.of(keys, second, keys, query_id=image, key_id=image), label


def numbers(negatives, label):
    return {name: float(part / whole) for name, (part, whole) in hardness_ratios(negatives, T, label).items()}


def ceil_share(share, count):
    return math.ceil(round(share * count, 6))


def oracle(negatives, label):
    """Every measure by a loop over queries and their ranked negatives, in float64."""
    similarity, weight = negatives.similarity.double().numpy(), negatives.log_weight.double().exp().numpy()
    attracted = np.zeros(weight.shape, bool) if negatives.attracted is None else negatives.attracted.numpy()
    of = [int(label[i]) if 0 <= i < len(label) else -1 for i in negatives.key_id.tolist()]
    lists: dict[str, list[float]] = {}
    for i, image in enumerate(negatives.query_id.tolist()):
        left = [j for j in range(weight.shape[1]) if weight[i, j] > 0 and not attracted[i, j]]
        left.sort(key=lambda j: -similarity[i, j])
        if not left:
            continue
        terms = [weight[i, j] * math.exp(similarity[i, j] / T) for j in left]
        r, own = [term / sum(terms) for term in terms], int(label[image])
        top, hard = ceil_share(0.001, len(left)), ceil_share(0.05, len(left))
        found = {
            "negative_first": similarity[i, left[0]],
            "negative_hardest": similarity[i, left[top - 1]],
            "negative_hard": similarity[i, left[hard - 1]],
            "negative_mean": sum(similarity[i, j] for j in left) / len(left),
            "effective": math.exp(-sum(share * math.log(share) for share in r)),
        }
        if own >= 0:
            found["false_mass"] = sum(share for share, j in zip(r, left, strict=True) if of[j] == own)
        for name, (first, last) in zip(BINS, ((0, top), (top, hard), (hard, len(left))), strict=True):
            found[f"gradient_{name}"] = sum(r[first:last])
            known = [of[j] == own for j in left[first:last] if of[j] >= 0]
            if known and own >= 0:
                found[f"same_class_{name}"] = sum(known) / len(known)
        for name, value in found.items():
            lists.setdefault(name, []).append(value)
    positive = (negatives.query.double() * negatives.positive.double()).sum(dim=1).numpy()
    lists |= {f"positive_{n}": [np.quantile(positive, q)] for n, q in (("low", 0.1), ("median", 0.5), ("high", 0.9))}
    return {name: float(np.mean(values)) for name, values in lists.items()}


def edited(name):
    """Tables with unknown classes, removed candidates, weights, mixes, positives among the candidates, an empty row."""
    negatives, label = table()
    label = torch.where(torch.arange(40) % 6 == 0, -1, label)
    if name == "weighted":
        draws = torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
        return replace(negatives, log_weight=draws), label
    if name == "removed":
        gone = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) < 0.3
        gone[3] = True
        return negatives.removed(gone), label
    if name == "mixed":
        for stage in (HardestSubset(30), MoCHi(pool=5, pair_mixes=0, query_mixes=6)):
            negatives = stage(negatives, CLOCK)
        return negatives, label
    return negatives.attracting(negatives.similarity > 0.8), label


@pytest.mark.parametrize("name", ["removed", "weighted", "mixed", "attracted"])
def test_measures_are_those_of_a_loop_over_queries_in_float64(name):
    negatives, label = edited(name)
    found, expected = numbers(negatives, label), oracle(negatives, label)
    assert set(found) == set(expected)
    for measure, value in expected.items():
        assert found[measure] == pytest.approx(value, rel=1e-5, abs=1e-6), measure


def test_the_live_table_and_the_analysis_of_the_same_embeddings_agree():
    negatives, label = table(200)
    x, found = negatives.query, numbers(negatives, label)
    shares, bins = gradient_shares(x, temperatures=[T]), hardness_bins(x, label)
    counts = negative_counts(x, label, negatives.positive, counts=[199], temperature=T)
    assert found["effective"] == pytest.approx(effective_negatives(x, temperatures=[T]).effective[0], rel=1e-5)
    assert found["false_mass"] == pytest.approx(counts.false_mass[0], rel=1e-5)
    for place, name in enumerate(BINS):
        assert found[f"gradient_{name}"] == pytest.approx(shares.share[place], rel=1e-4)
        assert found[f"same_class_{name}"] == pytest.approx(bins.rate[place], rel=1e-5)


def test_precision_and_recall_of_a_stage_are_those_of_the_analysis():
    negatives, label = table(200)
    record = Record(label)
    run_stages(negatives, [AbovePositive(margin=0.1, spare=False)], CLOCK, record)
    found = false_negative_detectors(
        negatives.query, label, positives=negatives.positive, gaps=[0.1], thresholds=(), shares=()
    )
    row = found[found.detector == "above positive"].iloc[0]
    for name in ("found", "precision", "recall"):
        assert float(record.numbers[f"negatives/1_AbovePositive/{name}"]) == pytest.approx(row[name], rel=1e-5)


def test_without_labels_what_needs_them_is_left_out():
    negatives, label = table()
    assert set(numbers(negatives, label)) - set(numbers(negatives, None)) == OF_CLASSES


@pytest.mark.parametrize("stages", [[], [HardestSubset(5)]])
def test_a_step_that_is_recorded_tells_what_its_loss_sees_and_has_the_loss_of_one_that_is_not(stages):
    negatives, label = table()
    ids, query = torch.arange(40), negatives.query.clone().requires_grad_()
    rest = (negatives.positive, ids, negatives.keys, ids, stages, T, CLOCK)
    record, before = Record(label), torch.get_rng_state()
    losses = [contrast(query, *rest, record=told)[0] for told in (record, None)]
    gradients = [torch.autograd.grad(loss.sum(), query)[0] for loss in losses]
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    assert torch.equal(torch.get_rng_state(), before)
    after = stages[0](negatives, CLOCK) if stages else negatives
    seen = {name.removeprefix("hardness/"): float(n) for name, n in record.numbers.items() if "hardness/" in name}
    seen = {name: number for name, number in seen.items() if not math.isnan(number)}  # bins that are empty
    assert seen == pytest.approx(oracle(after, label), rel=1e-5, abs=1e-6)


def test_a_run_that_records_every_step_ends_with_the_weights_of_one_that_records_none():
    weights, told = [], []
    for every in (1, 1000):
        torch.manual_seed(0)
        data = PretrainData(shapes("train").subset(torch.arange(0, 2000, 80)), Views(size=16), batch_size=8)
        method = MoCo(Backbone("resnet9", width=0.125), Head(out=16), queue_size=32)
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, callbacks=[CandidateShares(data.label_table())],
            log_every_n_steps=every, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(method, datamodule=data)
        weights.append(method.state_dict())
        told.append("hardness/false_mass" in trainer.callback_metrics)
    assert told == [True, False]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(("keys", "rows"), [(CELLS, ROWS), (CELLS // 64, 64), (16, 70)])
def test_of_long_tables_the_first_queries_are_measured(keys, rows):
    some = unit(torch.randn(70, 2, generator=torch.Generator().manual_seed(0)))
    query, ids = torch.from_numpy(some).float(), torch.arange(70)
    negatives = Negatives.of(query, query, torch.zeros(keys, 2), query_id=ids, key_id=torch.full((keys,), -1))
    kept = first_rows(negatives.attracting(negatives.similarity > 0.5))
    assert kept.similarity.shape == (rows, keys)
    assert kept.attracted is not None
    assert len(kept.attracted) == rows


def test_an_empty_queue_has_no_hardness():
    negatives, label = table()
    record, ids = Record(label), torch.arange(40)
    none = (torch.zeros(0, 6), torch.zeros(0).long())
    contrast(negatives.query, negatives.positive, ids, *none, [], T, CLOCK, record=record)
    assert not any(name.startswith("hardness/") for name in record.ratios)
