"""Losses by name: each is its function, on the table and in one pass over the keys alike."""

import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close
from widths import Float64Made

T = 0.2
NAMES = [
    "InfoNCE",
    "Debiased",
    "HardWeighted",
    "Decoupled",
    "SogCLR",
    "DecoupledWeighted",
    "DualTemperature",
    "RINCE",
    "MultiPositive",
    "Sincere",
    "CosineContrastive",
    "BPR",
    "Triplet",
    "Sigmoid",
    "BinaryCrossEntropy",
    "DualAMN",
    "Spectral",
    "Square",
    "AlignUniform",
]
WITHOUT_TABLE = [
    "InfoNCE",
    "Debiased",
    "HardWeighted",
    "Decoupled",
    "SogCLR",
    "DecoupledWeighted",
    "DualTemperature",
    "RINCE",
    "Spectral",
    "Square",
    "AlignUniform",
]
OTHER = {  # settings that are not the defaults
    "HardWeighted": {"beta": 2.0, "class_prior": 0.05, "detach_weights": True},
    "DecoupledWeighted": {"sigma": 0.3, "detach_weights": False},
    "DualTemperature": {"ratio": 3.0},
    "RINCE": {"exponent": 0.8, "density": 0.1, "bounded": True},
    "MultiPositive": {"inside": True},
    "Sincere": {"margin": 0.25},
    "CosineContrastive": {"margin": 0.05, "negatives": "sum"},
    "Square": {"negative_weight": 2.0, "target": -0.2},
    "AlignUniform": {"scale": 1.0, "exponent": 3.0, "align_weight": 0.5, "uniform_weight": 2.0},
}


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def objective(name, **settings):
    from contrastneg import objectives

    return getattr(objectives, name)(**settings)


def clock(step=0, total=10):
    from contrastneg.negatives import Clock

    return Clock(step, total, 0.0, 0)


def table(query=None, weight=None):
    from contrastneg.negatives import Negatives

    query = unit(5, 6) if query is None else query
    made = Negatives.of(
        query, unit(5, 6, seed=1), unit(30, 6, seed=2), query_id=torch.arange(5), key_id=torch.arange(30) % 9
    )
    return made if weight is None else dataclasses.replace(made, log_weight=made.log_weight + weight)


def expected_of(name, pos, neg, log_weight):
    """What the objective's function gives at its default settings."""
    from contrastneg import losses

    row = pos, neg, log_weight
    lse = (neg / T + log_weight).logsumexp(1)
    weight = 2 - len(pos) * torch.softmax(pos / 0.5, 0)
    return {
        "InfoNCE": lambda: losses.info_nce(*row, temperature=T),
        "Debiased": lambda: losses.debiased_info_nce(*row, temperature=T, class_prior=0.1),
        "HardWeighted": lambda: losses.hard_info_nce(*row, temperature=T, class_prior=0.1, beta=1.0),
        "Decoupled": lambda: losses.decoupled_info_nce(*row, temperature=T),
        "SogCLR": lambda: losses.moving_average_info_nce(*row, temperature=T),  # a first visit
        "DecoupledWeighted": lambda: lse - weight * pos / T,
        "DualTemperature": lambda: losses.dual_temperature_info_nce(*row, temperature=T, ratio=10.0),
        "RINCE": lambda: losses.rince(*row, temperature=T, exponent=0.5, density=0.001),
        "MultiPositive": lambda: losses.info_nce(*row, temperature=T),  # nothing is attracted
        "Sincere": lambda: losses.info_nce(*row, temperature=T),
        "CosineContrastive": lambda: losses.cosine_contrastive(*row, margin=0.4, negative_weight=10.0),
        "BPR": lambda: losses.bpr(*row, temperature=T),
        "Triplet": lambda: losses.triplet(*row, margin=0.1),
        "Sigmoid": lambda: losses.sigmoid(*row, temperature=T, bias=-10.0),
        "BinaryCrossEntropy": lambda: losses.binary_cross_entropy(*row, temperature=T),
        "DualAMN": lambda: losses.normalised_hard(*row),
        "Spectral": lambda: losses.spectral(*row),
        "Square": lambda: losses.square(*row, negative_weight=5.0),
        "AlignUniform": lambda: (
            2 - 2 * pos + (4 * (neg - 1) + log_weight).logsumexp((0, 1)) - log_weight.logsumexp((0, 1))
        ),
    }[name]()


def test_every_public_loss_is_in_this_grid():
    from contrastneg import objectives

    assert sorted(NAMES) == sorted(set(objectives.__all__) - {"Objective"})
    sums = [name for name in NAMES if issubclass(getattr(objectives, name), objectives.SumObjective)]
    assert sorted(sums) == sorted(WITHOUT_TABLE)


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_is_its_function_over_the_weighted_table(name):
    weight = torch.rand(5, 30, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    negatives = table(weight=weight)
    expected = expected_of(name, negatives.positive_similarity, negatives.similarity, negatives.log_weight)
    assert_close(objective(name)(negatives, T, clock()), expected)


@pytest.mark.parametrize("changed", [False, True], ids=["defaults", "changed"])
@pytest.mark.parametrize("name", WITHOUT_TABLE)
def test_one_pass_over_the_keys_gives_the_values_gradients_and_hits_of_the_table(name, changed):
    from contrastneg.contrast import contrast
    from contrastneg.negatives import UniformSubset

    loss = objective(name, **(OTHER.get(name, {}) if changed else {}))
    positive, keys = unit(5, 6, seed=1), unit(700, 6, seed=2)
    key_id = torch.arange(700) % 9
    key_id[:3] = -1
    found = []
    for stages in ([], [UniformSubset(10**6)]):  # keeping everything is a table of everything
        query = unit(5, 6).requires_grad_()
        values, first, contrasted = contrast(query, positive, torch.arange(5), keys, key_id, stages, T, clock(), loss)
        values.sum().backward()
        found.append((values.detach(), query.grad, first, contrasted))
    for one_pass, whole in zip(*found, strict=True):
        assert_close(one_pass, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_made_only_for_losses_that_look_at_single_candidates(name, monkeypatch):
    from contrastneg import contrast as module

    class Refused:
        @staticmethod
        def of(*_, **__):
            raise AssertionError("a table was made")

    monkeypatch.setattr(module, "Negatives", Refused)
    arguments = unit(5, 6), unit(5, 6), torch.arange(5), unit(30, 6), torch.arange(30), [], T, clock()
    if name in WITHOUT_TABLE:
        module.contrast(*arguments, objective(name))
    else:
        with pytest.raises(AssertionError, match="a table was made"):
            module.contrast(*arguments, objective(name))


@pytest.mark.parametrize("name", WITHOUT_TABLE)
def test_keys_may_be_overwritten_before_the_backward_pass(name):
    from contrastneg.contrast import contrast

    gradients = []
    for overwrite in (False, True):
        query, keys = unit(5, 6).requires_grad_(), unit(40, 6, seed=2)
        key_id = torch.arange(40) % 9
        values, _, _ = contrast(
            query, unit(5, 6, seed=1), torch.arange(5), keys, key_id, [], T, clock(), objective(name)
        )
        if overwrite:
            keys.zero_()
        values.sum().backward()
        gradients.append(query.grad)
    assert torch.equal(*gradients)


def one_hot_queue(name, stages=()):
    """Ten images as unit vectors, each twice in the queue, against five of them."""
    from contrastneg.contrast import contrast

    images = torch.eye(10)
    query = images[:5].clone().requires_grad_()
    ids, key_id = torch.arange(5), torch.arange(20) % 10
    return contrast(query, images[:5], ids, images.repeat(2, 1), key_id, stages, 0.1, clock(), objective(name))


@pytest.mark.parametrize("name", NAMES)
def test_older_keys_of_the_querys_own_image_are_not_among_its_candidates(name):
    from contrastneg.negatives import Negatives

    values, first, _ = one_hot_queue(name)
    images, neg = torch.eye(10), torch.zeros(5, 18)  # 20 keys less 2 of the query's own
    ids, no_ids = torch.arange(5), torch.full((18,), -1)
    others = Negatives(images[:5], images[:5], images[5:].repeat(4, 1)[:18], neg, neg, ids, no_ids)
    rounding = 1e-3 if name == "DualAMN" else 1e-5  # equal candidates have no spread to be measured in
    assert_close(values, objective(name)(others, 0.1, clock()), rtol=1e-5, atol=rounding)
    assert first.all()


def test_info_nce_over_a_queue_with_older_keys_of_the_query_has_its_known_value():
    values, _, _ = one_hot_queue("InfoNCE")
    assert values.mean().item() == pytest.approx(0.000817, abs=1e-6)


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_query_with_nothing_left_has_loss_and_gradient_exactly_zero(name, one_pass):
    from contrastneg.contrast import contrast
    from contrastneg.negatives import UniformSubset

    query = unit(4, 6).requires_grad_()
    key_id = torch.full((8,), 2)  # all keys show image 2
    stages = [] if one_pass else [UniformSubset(99)]
    values, _, contrasted = contrast(
        query, unit(4, 6, seed=1), torch.arange(4), unit(8, 6, seed=2), key_id, stages, T, clock(), objective(name)
    )
    values.sum().backward()
    assert values[2] == 0
    assert (query.grad[2] == 0).all()
    assert values.isfinite().all()
    assert query.grad.isfinite().all()
    assert contrasted.tolist() == [True, True, False, True]


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_queue_gives_zero(name):
    from contrastneg.contrast import contrast

    query = unit(4, 6).requires_grad_()
    values, _, contrasted = contrast(
        query, unit(4, 6, seed=1), torch.arange(4), unit(8, 6)[:0], torch.arange(0), [], T, clock(), objective(name)
    )
    values.sum().backward()
    assert (values == 0).all()
    assert (query.grad == 0).all()
    assert not contrasted.any()


@pytest.mark.parametrize("name", NAMES)
def test_what_unfilled_slots_of_the_queue_hold_changes_no_bit_of_the_first_losses(name):
    from contrastneg import KeyQueue
    from contrastneg.contrast import contrast

    runs = []
    for seed in (50, 60):
        queue, loss, numbers = KeyQueue(8, 6, torch.double), objective(name), []
        queue.keys.copy_(unit(8, 6, seed=seed))
        for step in range(4):
            query, ids = unit(3, 6, seed=10 + step).requires_grad_(), torch.arange(3) + 3 * step
            keys, key_id = queue.candidates()
            assert len(keys) == (0, 3, 6, 8)[step]
            values, _, _ = contrast(query, unit(3, 6, seed=20 + step), ids, keys, key_id, [], T, clock(step), loss)
            values.sum().backward()
            numbers += [values.detach(), query.grad]
            queue.push(unit(3, 6, seed=30 + step), ids)
        runs.append(numbers)
    assert (runs[0][0] == 0).all()
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_deterministic_mode_aborts_no_loss_and_float32_numbers_stay_float32(name, one_pass):
    from contrastneg.contrast import contrast
    from contrastneg.negatives import UniformSubset

    keys, found = unit(40, 6, seed=2).float(), []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            query = unit(5, 6).float().requires_grad_()
            given = query, unit(5, 6, seed=1).float(), torch.arange(5), keys, torch.arange(40) % 9
            with Float64Made() as made:
                values, _, _ = contrast(*given, [] if one_pass else [UniformSubset(99)], T, clock(), objective(name))
                values.sum().backward()
            assert made.names == set()
            found.append((values.detach(), query.grad))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.07, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_small_temperatures_under_autocast_stay_finite_in_one_pass_and_over_the_table(name, temperature, dtype):
    from contrastneg.contrast import contrast
    from contrastneg.negatives import UniformSubset

    query = unit(6, 16).float()
    keys = torch.cat([query, -query, unit(20, 16, seed=2).float()])  # as near and as far as can be
    found = []
    for stages in ([], [UniformSubset(99)]):
        leaf = query.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            values, _, _ = contrast(
                leaf, query, torch.arange(6), keys, torch.arange(32) + 6, stages, temperature, clock(), objective(name)
            )
        values.sum().backward()
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert leaf.grad.isfinite().all()
        found.append(values.detach())
    assert_close(*found, rtol=1e-4, atol=1e-4)


def numeric_settings():
    from contrastneg import objectives

    for name in NAMES:
        for field in dataclasses.fields(getattr(objectives, name)):
            if "Schedule" in str(field.type) and name != "SogCLR":  # whose gamma shows at a second visit only
                yield name, field.name, field.default


def test_every_number_of_every_loss_may_be_a_schedule():
    from contrastneg.schedules import Linear

    seen = 0
    for name, field, default in numeric_settings():
        half = default / 2
        course = objective(name, **{field: Linear(default, half)})
        for step, number in ((0, default), (5, 0.75 * default), (10, half)):
            fixed = objective(name, **{field: number})
            assert_close(course(table(), T, clock(step)), fixed(table(), T, clock()), msg=f"{name}.{field}")
        assert not torch.equal(fixed(table(), T, clock()), objective(name)(table(), T, clock())) or default == 0, field
        seen += 1
    assert seen == 20


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("Debiased", {"class_prior": 1.0}, "Debiased.class_prior is 1.0: give a number of at least 0 and below 1"),
        ("HardWeighted", {"beta": -1.0}, "HardWeighted.beta is -1.0: give a number of at least 0"),
        ("HardWeighted", {"class_prior": -0.5}, "HardWeighted.class_prior is -0.5"),
        ("DecoupledWeighted", {"sigma": 0.0}, "DecoupledWeighted.sigma is 0.0: give a number above 0"),
        ("DualTemperature", {"ratio": 0.0}, "DualTemperature.ratio is 0"),
        ("RINCE", {"exponent": 1.5}, "RINCE.exponent is 1.5: give a number above 0 and at most 1"),
        ("RINCE", {"density": 1.0}, "RINCE.density is 1.0: give a number above 0 and below 1"),
        ("SogCLR", {"gamma": 0.0}, "SogCLR.gamma is 0.0: give a number above 0 and at most 1"),
        ("SogCLR", {"gamma": 1.1}, "SogCLR.gamma is 1.1"),
        ("CosineContrastive", {"margin": 2.0}, "CosineContrastive.margin is 2.0: give a number from -1 to 1"),
        ("CosineContrastive", {"negative_weight": 0.0}, "CosineContrastive.negative_weight is 0"),
        ("Triplet", {"margin": 3.0}, "Triplet.margin is 3.0: give a number from 0 to 2"),
        ("DualAMN", {"scale": 0.0}, "DualAMN.scale is 0"),
        ("Square", {"negative_weight": -1.0}, "Square.negative_weight is -1"),
        ("Square", {"target": 2.0}, "Square.target is 2"),
        ("AlignUniform", {"scale": 0.0}, "AlignUniform.scale is 0"),
        ("AlignUniform", {"exponent": 0.0}, "AlignUniform.exponent is 0"),
        ("AlignUniform", {"uniform_weight": -1.0}, "AlignUniform.uniform_weight is -1"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name_in_one_line(name, settings, words):
    with pytest.raises(ValueError) as refusal:
        objective(name, **settings)
    assert str(refusal.value).startswith(words)
    assert "\n" not in str(refusal.value)


def test_a_schedule_that_leaves_the_range_is_refused_too():
    from contrastneg.schedules import Linear

    with pytest.raises(ValueError, match="Debiased.class_prior is 1.2 at progress 1"):
        objective("Debiased", class_prior=Linear(0.1, 1.2))


def test_losses_that_assume_candidates_drawn_alike_are_refused_after_stages_that_break_this():
    from contrastneg.negatives import MoCHi, UniformSubset
    from contrastneg.objectives import check_objective

    for name in ("Debiased", "HardWeighted"):
        with pytest.raises(
            ValueError, match=rf"loss {name} needs candidates drawn at random, .* after method.stages\[1\] MoCHi"
        ):
            check_objective(objective(name), [UniformSubset(), MoCHi()], T)
        check_objective(objective(name), [UniformSubset()], T)
    check_objective(objective("InfoNCE"), [UniformSubset(), MoCHi()], T)


def test_a_loss_that_cannot_work_at_the_temperature_is_refused_when_the_method_is_built():
    from contrastneg import Backbone, SimCLR
    from contrastneg.schedules import Linear

    small = Backbone(name="resnet10t", width=0.125)
    for exponent in (1.0, Linear(0.1, 1.0)):
        with pytest.raises(ValueError, match="too large for float32"):
            SimCLR(small, temperature=0.01, loss=objective("RINCE", exponent=exponent))
    SimCLR(small, temperature=0.01, loss=objective("RINCE", exponent=1.0, bounded=True))


@pytest.mark.parametrize("name", ["Debiased", "HardWeighted"])
def test_the_share_of_queries_at_the_floor_is_recorded(name):
    from contrastneg.negatives import Negatives

    query = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    neg = torch.tensor([[-0.9, -0.9], [0.5, 0.4], [0.0, 0.0]])  # far, near, removed
    log_weight = torch.zeros(3, 2)
    log_weight[2] = -math.inf
    ids = torch.arange(3)
    negatives = Negatives(query, query, query[:2], neg, log_weight, ids, ids[:2])
    seen = {}
    objective(name)(negatives, 0.5, clock(), lambda what, values: seen.update({what: values.tolist()}))
    assert seen == {"floor": [True, False, False]}


def test_annealing_changes_beta_first_at_epoch_88_of_400_and_reaches_zero_at_396():
    from contrastneg.schedules import Staircase

    course = Staircase(2.0, 0.0)
    betas = [course(epoch / 400) for epoch in range(400)]
    changes = [epoch for epoch in range(1, 400) if betas[epoch] != betas[epoch - 1]]
    assert changes == [88, 132, 176, 220, 264, 308, 352, 396]
    assert [betas[epoch] for epoch in (0, *changes)] == [2 - 0.25 * k for k in range(9)]


@pytest.mark.parametrize(
    ("settings", "words"), [({"values": 1}, "Staircase.values is 1"), ({"period": 0.2}, "Staircase.period is 0.2")]
)
def test_a_staircase_that_never_arrives_is_refused(settings, words):
    from contrastneg.schedules import Staircase

    with pytest.raises(ValueError, match=words):
        Staircase(1.0, 0.0, **settings)


@pytest.mark.parametrize("inside", [False, True])
def test_attracting_the_true_class_before_multi_positive_is_supcon(inside):
    from contrastneg.contrast import contrast
    from contrastneg.losses import sincere, supervised_contrastive
    from contrastneg.negatives import Facts, OracleSameLabel

    view1, view2, labels, ids = unit(8, 6), unit(8, 6, seed=1), torch.arange(8) % 3, torch.arange(8)
    query, partner = torch.cat([view1, view2]), torch.cat([view2, view1])
    stage = OracleSameLabel(action="attract")
    stage.begin(Facts(8, 6, labels))
    arguments = (query, partner, ids.repeat(2), query, ids.repeat(2), [stage], T, clock())
    found, hits, _ = contrast(*arguments, objective("MultiPositive", inside=inside))
    assert_close(found, supervised_contrastive(view1, view2, labels, temperature=T, inside=inside))
    assert_close(contrast(*arguments, objective("Sincere"))[0], sincere(view1, view2, labels, temperature=T))
    negative = labels.repeat(2)[:, None] != labels.repeat(2)
    hardest = (query @ query.T).masked_fill(~negative, -2).amax(dim=1)
    assert torch.equal(hits, (query * partner).sum(dim=1) > hardest)  # what is attracted cannot be a miss


def test_attraction_is_refused_before_a_loss_of_one_positive():
    from contrastneg.negatives import OracleSameLabel
    from contrastneg.objectives import check_objective

    attracting = [OracleSameLabel(action="attract")]
    with pytest.raises(
        ValueError, match="OracleSameLabel attracts candidates but method.loss InfoNCE has one positive"
    ):
        check_objective(objective("InfoNCE"), attracting, T)
    for name in ("MultiPositive", "Sincere"):
        check_objective(objective(name), attracting, T)
    check_objective(objective("InfoNCE"), [OracleSameLabel()], T)
