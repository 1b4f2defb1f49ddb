"""What holds for every loss of the form (positive, candidates, log-weights): one grid, so that no loss is left out."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

T = 0.2
FURTHER = [1, 4]  # columns that are positives too, where a loss knows of such
CASES = {
    "info_nce": {},
    "debiased_info_nce": {"class_prior": 0.1},
    "hard_info_nce": {"class_prior": 0.1, "beta": 1.0},
    "hard_info_nce detached": {"class_prior": 0.1, "beta": 1.0, "detach_weights": True},
    "decoupled_info_nce": {},
    "moving_average_info_nce": {},
    "dual_temperature_info_nce": {"ratio": 3.0},
    "rince": {"exponent": 0.5, "density": 0.01},
    "rince bounded": {"exponent": 1.0, "density": 0.01, "bounded": True},
    "multi_positive_info_nce": {"is_positive": None},
    "multi_positive_info_nce inside": {"is_positive": None, "inside": True},
    "sincere_info_nce": {"is_positive": None},
    "sincere_info_nce margin": {"is_positive": None, "margin": 0.25},
    "cosine_contrastive": {"margin": 0.1, "negative_weight": 7.0},
    "cosine_contrastive sum": {"margin": 0.1, "mean": False},
    "bpr": {},
    "triplet": {"margin": 0.3},
    "sigmoid": {"bias": -3.0},
    "binary_cross_entropy": {"bias": -0.5},
    "normalised_hard": {"scale": 5.0},
    "spectral": {},
    "square": {"negative_weight": 4.0, "target": -0.1},
}
WITHOUT_TEMPERATURE = ("cosine_contrastive", "triplet", "normalised_hard", "spectral", "square")
STOPS_GRADIENT = ("hard_info_nce detached", "dual_temperature_info_nce", "normalised_hard")
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


def loss_of(name, temperature=T, further=FURTHER):
    """The loss as a function of positives, candidates and log-weights."""
    from contrastneg import losses

    settings = dict(CASES[name])
    name = name.partition(" ")[0]
    if name not in WITHOUT_TEMPERATURE:
        settings["temperature"] = temperature

    def loss(pos, neg, log_weight=None):
        if "is_positive" in settings:
            marked = torch.zeros(neg.shape[1], dtype=torch.bool)
            marked[[column for column in further if column < neg.shape[1]]] = True
            settings["is_positive"] = marked.expand_as(neg)
        return getattr(losses, name)(pos, neg, log_weight, **settings)

    return loss


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("name", CASES)
def test_shapes_that_would_be_broadcast_are_refused_and_named(name):
    loss, pos, neg = loss_of(name), torch.rand(5), torch.rand(5, 7)
    wrong = (
        (pos[:, None], neg),
        (pos[:1], neg),
        (pos, neg[:4]),
        (pos, neg, torch.zeros(7)),
        (pos, neg, torch.zeros(5, 1)),
    )
    for given in wrong:
        with pytest.raises(ValueError, match=r"must be \(B,\), the candidates .* got \("):
            loss(*given)


@pytest.mark.usefixtures("as_users_call")
def test_forms_of_log_sum_exps_refuse_what_is_not_one_value_per_query():
    from contrastneg import losses

    forms = [
        getattr(losses, name) for name in losses.__all__ if "lse" in inspect.signature(getattr(losses, name)).parameters
    ]
    assert len(forms) >= 7
    tried = 0
    for form in forms:
        needed = [p for p in inspect.signature(form).parameters.values() if p.default is p.empty]
        vectors = [p for p in needed if p.kind is p.POSITIONAL_OR_KEYWORD]
        numbers = {p.name: 0.5 for p in needed if p.kind is p.KEYWORD_ONLY}
        if len(vectors) > 1:  # of one vector alone there is nothing that it could be broadcast with
            tried += 1
            with pytest.raises(ValueError, match=r"\(5, 1\), \(5,\)"):
                form(torch.rand(5, 1), *(torch.rand(5) for _ in vectors[1:]), **numbers)
    assert tried == len(forms) - 1
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(6, 3\)"):
        losses.nt_xent(torch.rand(4, 3), torch.rand(6, 3), temperature=0.5)


@pytest.fixture
def sims():
    """Cosines of 5 queries to a positive and 7 candidates; float64, so 1e-10 means something."""
    cosines = 2 * torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double) - 1
    return cosines[:, 0].clone(), cosines[:, 1:].clone()


def gradients(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*inputs).sum(), inputs)


# Each loss written out for one query in plain numbers: p the positive, n the candidates, w their weights, m the marks.
def lse(values, weights=None):
    return math.log(sum(w * math.exp(v) for v, w in zip(values, weights or [1] * len(values), strict=True)))


def mean(values, weights):
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def softplus(x):
    return math.log1p(math.exp(x))


def debiased(p, n, w, tilt=0.0, prior=0.1):
    many = sum(w)
    tilts = [weight * math.exp(tilt * s / T) for s, weight in zip(n, w, strict=True)]
    sums = many * mean([math.exp(s / T) for s in n], tilts)
    mass = max((sums - prior * many * math.exp(p / T)) / (1 - prior), many * math.exp(-1 / T))
    return -math.log(math.exp(p / T) / (math.exp(p / T) + mass))


def rince(p, n, w, q, scale=1.0):
    total = math.exp(p / T) + sum(weight * math.exp(s / T) for s, weight in zip(n, w, strict=True))
    return scale * (-math.exp(q * p / T) / q + (0.01 * total) ** q / q)


def dual(p, n, w):
    share = [math.exp(p / t) / (math.exp(p / t) + math.exp(lse([s / t for s in n], w))) for t in (T, 3 * T)]
    return (1 - share[1]) / (1 - share[0]) * -math.log(share[0])


def several(p, n, w, m, inside):
    positives, weights = (
        [p, *(s for s, mark in zip(n, m, strict=True) if mark)],
        [1, *(x for x, y in zip(w, m, strict=True) if y)],
    )
    total = lse([p / T, *(s / T for s in n)], [1, *w])
    if inside:
        return total - math.log(mean([math.exp(s / T) for s in positives], weights))
    return mean([total - s / T for s in positives], weights)


def sincere(p, n, w, m, margin):
    positives, weights = (
        [p, *(s for s, mark in zip(n, m, strict=True) if mark)],
        [1, *(x for x, y in zip(w, m, strict=True) if y)],
    )
    others = sum(weight * math.exp(s / T) for s, weight, mark in zip(n, w, m, strict=True) if not mark)
    return mean([-math.log(math.exp(s / T) / (math.exp(s / T - margin) + others)) for s in positives], weights)


def standardised(p, n, w):
    h = [2 * (s - p) for s in n]
    centre = mean(h, w)
    spread = math.sqrt(mean([(x - centre) ** 2 for x in h], w))
    return lse([5 * (x - centre) / spread + 10 for x in h], w)


WRITTEN_OUT = {
    "info_nce": lambda p, n, w, m: (
        -math.log(math.exp(p / T) / (math.exp(p / T) + math.exp(lse([s / T for s in n], w))))
    ),
    "debiased_info_nce": lambda p, n, w, m: debiased(p, n, w),
    "hard_info_nce": lambda p, n, w, m: debiased(p, n, w, tilt=1.0),
    "hard_info_nce detached": lambda p, n, w, m: debiased(p, n, w, tilt=1.0),
    "decoupled_info_nce": lambda p, n, w, m: -p / T + lse([s / T for s in n], w),
    "moving_average_info_nce": lambda p, n, w, m: -p + T * math.log(mean([math.exp(s / T) for s in n], w)),
    "dual_temperature_info_nce": lambda p, n, w, m: dual(p, n, w),
    "rince": lambda p, n, w, m: rince(p, n, w, 0.5),
    "rince bounded": lambda p, n, w, m: rince(p, n, w, 1.0, math.exp(-1 / T)),
    "multi_positive_info_nce": lambda p, n, w, m: several(p, n, w, m, inside=False),
    "multi_positive_info_nce inside": lambda p, n, w, m: several(p, n, w, m, inside=True),
    "sincere_info_nce": lambda p, n, w, m: sincere(p, n, w, m, 0.0),
    "sincere_info_nce margin": lambda p, n, w, m: sincere(p, n, w, m, 0.25),
    "cosine_contrastive": lambda p, n, w, m: max(0, 1 - p) + 7 * mean([max(0, s - 0.1) for s in n], w),
    "cosine_contrastive sum": lambda p, n, w, m: max(0, 1 - p) + sum(w) * mean([max(0, s - 0.1) for s in n], w),
    "bpr": lambda p, n, w, m: mean([softplus((s - p) / T) for s in n], w),
    "triplet": lambda p, n, w, m: mean([max(0, s - p + 0.3) for s in n], w),
    "sigmoid": lambda p, n, w, m: softplus(3 - p / T) + sum(w) * mean([softplus(s / T - 3) for s in n], w),
    "binary_cross_entropy": lambda p, n, w, m: softplus(0.5 - p / T) + mean([softplus(s / T - 0.5) for s in n], w),
    "normalised_hard": lambda p, n, w, m: standardised(p, n, w),
    "spectral": lambda p, n, w, m: -2 * p + mean([s * s for s in n], w),
    "square": lambda p, n, w, m: (1 - p) ** 2 + 4 * mean([(s + 0.1) ** 2 for s in n], w),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_its_formula_written_out_in_plain_numbers(sims, name):
    pos, neg = sims
    weight = torch.rand(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.double) + 0.1
    marks = [column in FURTHER for column in range(7)]
    expected = [WRITTEN_OUT[name](pos[i].item(), neg[i].tolist(), weight[i].tolist(), marks) for i in range(5)]
    assert_close(loss_of(name)(pos, neg, weight.log()), torch.tensor(expected, dtype=torch.double))
    expected = [WRITTEN_OUT[name](pos[i].item(), neg[i].tolist(), [1.0] * 7, marks) for i in range(5)]
    assert_close(loss_of(name)(pos, neg), torch.tensor(expected, dtype=torch.double))


@pytest.mark.parametrize("name", CASES)
def test_a_weight_of_log_minus_infinity_is_an_absent_column_in_value_and_gradient(sims, name):
    pos, neg = sims
    dropped = [0, 4, 5]  # a further positive among them
    kept = [column for column in range(7) if column not in dropped]
    log_weight = torch.zeros_like(neg)
    log_weight[:, dropped] = -math.inf
    marks = [kept.index(column) for column in FURTHER if column in kept]
    removed, absent = loss_of(name), loss_of(name, further=marks)
    assert_close(removed(pos, neg, log_weight), absent(pos, neg[:, kept]))
    pos_grad, neg_grad = gradients(lambda p, n: removed(p, n, log_weight), pos, neg)
    pos_expected, neg_expected = gradients(absent, pos, neg[:, kept])
    assert_close(pos_grad, pos_expected)
    assert_close(neg_grad[:, kept], neg_expected)
    assert (neg_grad[:, dropped] == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_what_unfilled_slots_hold_does_not_matter(sims, name):
    pos, neg = sims
    log_weight = torch.zeros_like(neg)
    log_weight[:, 3:] = -math.inf
    other = neg.clone()
    other[:, 3:] = torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=torch.double)
    assert torch.equal(loss_of(name)(pos, neg, log_weight), loss_of(name)(pos, other, log_weight))


@pytest.mark.parametrize("w", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_weight_w_is_the_candidate_listed_w_times(sims, name, w):
    pos, neg = sims
    weighted = loss_of(name)(pos, neg, torch.full_like(neg, w).log())
    marks = [column + 7 * copy for column in FURTHER for copy in range(w)]
    assert_close(weighted, loss_of(name, further=marks)(pos, neg.repeat(1, w)))


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_candidates_and_of_queries_changes_nothing(sims, name):
    pos, neg = sims
    order, rows = torch.tensor([4, 6, 1, 0, 2, 5, 3]), torch.tensor([3, 0, 4, 1, 2])
    marks = [order.tolist().index(column) for column in FURTHER]
    loss = loss_of(name)(pos, neg)
    assert_close(loss_of(name, further=marks)(pos, neg[:, order]), loss)
    assert_close(loss_of(name)(pos[rows], neg[rows]), loss[rows])


@pytest.mark.parametrize("name", CASES)
def test_a_query_with_nothing_left_has_loss_and_gradient_exactly_zero_and_leaves_the_others_alone(sims, name):
    pos, neg = sims
    log_weight, others = torch.zeros_like(neg), [0, 1, 3, 4]
    log_weight[2] = -math.inf
    loss = loss_of(name)(pos, neg, log_weight)
    assert loss[2] == 0
    assert_close(loss[others], loss_of(name)(pos[others], neg[others]))
    pos_grad, neg_grad, weight_grad = gradients(loss_of(name), pos, neg, log_weight)
    assert pos_grad[2] == 0
    assert (neg_grad[2] == 0).all()
    assert (weight_grad[2] == 0).all()
    assert_close(pos_grad[others], gradients(loss_of(name), pos[others], neg[others])[0])
    assert pos_grad.isfinite().all()
    assert neg_grad.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_without_any_candidate_all_is_zero(sims, name):
    pos, neg = sims
    for candidates, log_weight in (
        (neg[:, :0], None),
        (neg[:, :0], neg[:, :0]),
        (neg, torch.full_like(neg, -math.inf)),
    ):
        assert (loss_of(name)(pos, candidates, log_weight) == 0).all()
        pos_grad, neg_grad = gradients(lambda p, n, w=log_weight: loss_of(name)(p, n, w), pos, candidates)
        assert (pos_grad == 0).all()
        assert (neg_grad == 0).all()


@pytest.mark.parametrize("name", sorted(CASES.keys() - set(STOPS_GRADIENT)))
def test_the_gradient_is_that_of_the_value(sims, name):
    pos, neg = (x[:3] for x in sims)
    log_weight = torch.rand(3, 7, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    inputs = [x.clone().requires_grad_() for x in (pos, neg, log_weight)]
    assert torch.autograd.gradcheck(loss_of(name), inputs)


EXP = math.exp
ALL_ALIKE = {  # the loss where the positive and all 4 candidates have similarity 1, one of them a further positive
    "info_nce": lambda t: math.log(5),
    "debiased_info_nce": lambda t: math.log(5),
    "hard_info_nce": lambda t: math.log(5),
    "hard_info_nce detached": lambda t: math.log(5),
    "decoupled_info_nce": lambda t: math.log(4),
    "moving_average_info_nce": lambda t: 0.0,
    "dual_temperature_info_nce": lambda t: math.log(5),
    "rince": lambda t: EXP(0.5 / t) * (math.sqrt(0.05) - 1) * 2,
    "rince bounded": lambda t: 0.05 - 1,
    "multi_positive_info_nce": lambda t: math.log(5),
    "multi_positive_info_nce inside": lambda t: math.log(5),
    "sincere_info_nce": lambda t: math.log(4),
    "sincere_info_nce margin": lambda t: math.log(3 + EXP(-0.25)),
    "cosine_contrastive": lambda t: 7 * 0.9,
    "cosine_contrastive sum": lambda t: 4 * 0.9,
    "bpr": lambda t: math.log(2),
    "triplet": lambda t: 0.3,
    "sigmoid": lambda t: math.log1p(EXP(3 - 1 / t)) + 4 * (1 / t - 3 + math.log1p(EXP(3 - 1 / t))),
    "binary_cross_entropy": lambda t: math.log1p(EXP(0.5 - 1 / t)) + (1 / t - 0.5 + math.log1p(EXP(0.5 - 1 / t))),
    "normalised_hard": lambda t: 10 + math.log(4),
    "spectral": lambda t: -1.0,
    "square": lambda t: 4 * 1.21,
}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.07, 0.2])
@pytest.mark.parametrize("name", CASES)
def test_equal_similarities_have_their_closed_form_at_any_temperature_and_precision(name, temperature, dtype):
    pos = torch.ones(2, dtype=dtype, requires_grad=True)
    neg = torch.ones(2, 4, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype is torch.float32 else dtype):
        loss = loss_of(name, temperature, further=[2])(pos, neg)
    expected = ALL_ALIKE[name](temperature)
    assert loss.dtype == torch.float32
    assert_close(loss, torch.full((2,), expected), atol=1e-3, rtol=1e-4)
    if overflows(name, temperature, dtype):
        return
    loss.sum().backward()
    assert pos.grad.isfinite().all()
    assert neg.grad.isfinite().all()


def overflows(name, temperature, dtype):
    """Whether the gradient of RINCE as published, e^(q / t) / t, is beyond float16; its bounded form is not."""
    return name == "rince" and dtype == torch.float16 and math.exp(0.5 / temperature) / temperature > 65504


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.07, 0.2])
@pytest.mark.parametrize("name", CASES)
def test_opposite_similarities_stay_finite_at_any_temperature_and_precision(name, temperature, dtype):
    pos = torch.ones(2, dtype=dtype, requires_grad=True)
    neg = torch.full((2, 4), -1.0, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype is torch.float32 else dtype):
        loss = loss_of(name, temperature, further=[])(pos, neg)
        swapped = loss_of(name, temperature, further=[])(-pos, -neg)
    if name in ("info_nce", "debiased_info_nce", "hard_info_nce", "hard_info_nce detached", "multi_positive_info_nce"):
        aligned = math.log1p(4 * math.exp(-2 / temperature))
        assert_close(loss, torch.full((2,), aligned), atol=1e-9, rtol=1e-3)
    assert loss.isfinite().all()
    assert swapped.isfinite().all()
    if overflows(name, temperature, dtype):
        return
    (loss + swapped).sum().backward()
    for tensor in (pos.grad, neg.grad):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing(sims, name):
    pos, neg = (x.float() for x in sims)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_of(name)(pos, neg)
    assert torch.equal(inside, loss_of(name)(pos, neg))


@pytest.mark.parametrize("name", CASES)
def test_float32_has_the_values_and_gradients_of_float64(name):
    generator = torch.Generator().manual_seed(3)
    pos = torch.rand(16, generator=generator, dtype=torch.double)
    neg = (torch.randn(16, 256, generator=generator, dtype=torch.double) * 0.2).clamp(-1, 1)
    exact, single = (loss_of(name, 0.07)(pos.to(dtype), neg.to(dtype)) for dtype in (torch.double, torch.float))
    assert_close(single.double(), exact, rtol=2e-5, atol=1e-5)
    for found, expected in zip(
        gradients(loss_of(name, 0.07), pos.float(), neg.float()), gradients(loss_of(name, 0.07), pos, neg), strict=True
    ):
        assert (found.double() - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", [name for name in CASES if name.partition(" ")[0] not in WITHOUT_TEMPERATURE])
def test_a_temperature_of_zero_is_refused(sims, name):
    with pytest.raises(ValueError, match="temperature must be positive"):
        loss_of(name, temperature=0.0)(*sims)
