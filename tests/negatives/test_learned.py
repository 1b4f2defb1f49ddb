"""The adversarial bank: its update against autograd, and who moves when."""

import pytest
import torch
from torch.testing import assert_close

T = 0.2


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def clock(step=7):
    from contrastneg.negatives import Clock

    return Clock(step, 100, 20.0, 0)


def table():
    from contrastneg.negatives import Negatives

    ids = {"query_id": torch.arange(5), "key_id": torch.arange(100, 140)}
    return Negatives.of(unit(5, 8).requires_grad_(), unit(5, 8, seed=1), unit(40, 8, seed=2), **ids)


def bank(**settings):
    """Vectors of double precision that are not of unit length."""
    from contrastneg.negatives import AdversarialBank

    made = AdversarialBank(**{"size": 20, "temperature": T} | settings)
    made.eval()(table(), clock())
    made.vectors = made.vectors.double() * torch.linspace(0.5, 2, made.size)[:, None]
    made.velocity = made.velocity.double()
    return made.train()


def loss_of(made, vectors, batch_keys=True):
    """The loss summed over queries as a function of the vectors, by autograd."""
    negatives = table()
    unit_vectors = torch.nn.functional.normalize(vectors, dim=1)
    similarity = negatives.query.detach() @ unit_vectors.T
    if batch_keys:
        others = negatives.query.detach() @ negatives.positive.T
        similarity = torch.cat([others.masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf), similarity], dim=1)
    logits = torch.cat([negatives.positive_similarity.detach()[:, None], similarity], dim=1) / T
    return (logits.logsumexp(dim=1) - logits[:, 0]).sum()


@pytest.mark.parametrize("batch_keys", [True, False])
def test_the_gradient_of_the_vectors_is_that_of_autograd_and_stands_upright_on_them(batch_keys):
    from contrastneg.negatives.adversarial import softmax_sums

    made = bank(batch_keys=batch_keys)
    vectors = made.vectors.clone().requires_grad_()
    (exact,) = torch.autograd.grad(loss_of(made, vectors, batch_keys), vectors)
    grown = made.eval()(table(), clock())
    found = made.gradient(softmax_sums(grown, T)[1][-20:])
    assert_close(found, exact)
    assert_close((found * made.vectors).sum(dim=1), torch.zeros(20, dtype=torch.double))


def test_steps_are_those_of_momentum_that_climbs_and_decays():
    made = bank(rate=0.5, momentum=0.9, weight_decay=0.01)
    w, v = made.vectors.clone(), torch.zeros(20, 8, dtype=torch.double)
    for step in range(3):
        leaf = w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(made, leaf) / 5, leaf)
        v = 0.9 * v - gradient + 0.01 * w
        w = w - 0.5 * v
        made(table(), clock(step))
    assert_close(made.vectors, w)
    assert_close(made.velocity, v)


def test_a_small_step_raises_the_loss_and_a_rate_of_zero_keeps_the_bank():
    made = bank(rate=0.01, weight_decay=0.0)
    before = loss_of(made, made.vectors)
    made(table(), clock())
    assert loss_of(made, made.vectors) > before
    frozen = bank(rate=0.0)
    start = frozen.vectors.clone()
    frozen(table(), clock())
    assert torch.equal(frozen.vectors, start)


def test_the_encoder_meets_the_vectors_as_they_were_before_the_step_and_does_not_move_them():
    from contrastneg.losses import info_nce

    made, negatives = bank(rate=1.0), table()
    start = made.vectors.clone()
    grown = made(negatives, clock())
    assert_close(grown.keys[-20:], torch.nn.functional.normalize(start, dim=1))
    assert not torch.equal(made.vectors, start)
    moved = made.vectors.clone()
    loss = info_nce(grown.positive_similarity, grown.similarity, grown.log_weight, temperature=T)
    loss.sum().backward()  # would fail if the step had changed what the table keeps
    assert_close(loss.sum().detach(), loss_of(made, start))
    assert torch.equal(made.vectors, moved)
    assert not made.vectors.requires_grad
    assert not list(made.parameters())


def test_the_table_holds_the_other_images_keys_and_the_bank_in_place_of_its_keys():
    negatives = table()
    grown = bank()(negatives, clock())
    assert grown.key_id.tolist() == [*range(5), *[-1] * 20]
    assert torch.equal(grown.kept[:, :5], ~torch.eye(5, dtype=torch.bool))
    assert grown.kept[:, 5:].all()
    assert_close(grown.similarity[:, :5], negatives.query @ negatives.positive.T)
    alone = bank(batch_keys=False)(negatives, clock())
    assert alone.key_id.tolist() == [-1] * 20


def test_it_starts_as_embeddings_of_images_once_and_fills_up_at_random():
    from contrastneg.negatives import AdversarialBank, Facts

    pictures = unit(30, 8, seed=6).float()
    pictures[::3] = torch.nan  # indices without an image
    made = AdversarialBank(size=25)
    made.begin(Facts(images=30, dim=8))
    random = made.vectors.clone()
    made.refresh(lambda: pictures, clock())
    same = (made.vectors[:20, None] == pictures).all(dim=2)
    assert same.any(dim=1).all()
    assert same.sum(dim=0).max() == 1  # no image twice
    assert torch.equal(made.vectors[20:], random[20:])
    made.refresh(lambda: pytest.fail("looked at the images again"), clock())
    AdversarialBank(size=5, start="random").refresh(lambda: pytest.fail("looked at the images"), clock())


def test_every_process_starts_with_the_same_images():
    from dataclasses import replace

    from contrastneg.negatives import AdversarialBank

    pictures = unit(30, 8, seed=6).float()
    banks = [AdversarialBank(size=9) for _ in range(2)]
    for rank, made in enumerate(banks):
        made.refresh(lambda: pictures, replace(clock(), rank=rank))
    assert torch.equal(banks[0].vectors, banks[1].vectors)


def test_nothing_is_learned_in_evaluation():
    made = bank(rate=1.0)
    start = made.vectors.clone()
    made.eval()(table(), clock())
    assert torch.equal(made.vectors, start)


def test_the_bank_and_its_velocity_are_in_the_checkpoint_and_are_not_started_anew():
    from contrastneg.negatives import AdversarialBank, Facts

    made = bank(rate=1.0)
    made(table(), clock())
    again = AdversarialBank(size=20)
    again.load_state_dict(made.state_dict())
    again.begin(Facts(images=10, dim=8))
    assert_close(again.vectors, made.vectors, check_dtype=False)
    assert_close(again.velocity, made.velocity, check_dtype=False)


def test_stages_that_ask_which_image_a_candidate_shows_are_refused_after_the_bank():
    from contrastneg.negatives import AdversarialBank, MoCHi, Stage, check_pipeline

    class ById(Stage):
        kind = "eliminate"
        needs = frozenset({"id"})

        def __call__(self, negatives, clock):
            return negatives

    check_pipeline([AdversarialBank(size=4), MoCHi()], {"id", "queue"})
    with pytest.raises(ValueError, match="ById needs the image behind each candidate, .* AdversarialBank"):
        check_pipeline([AdversarialBank(size=4), ById()], {"id", "queue"})


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"rate": -1.0}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"temperature": 0.0}]
)
def test_values_out_of_range_are_refused_by_name(wrong):
    from contrastneg.negatives import AdversarialBank

    with pytest.raises(ValueError, match=f"AdversarialBank.{next(iter(wrong))} is"):
        AdversarialBank(**{"size": 4} | wrong)


def test_a_bank_that_learns_cannot_follow_another_source():
    from contrastneg.negatives import AdversarialBank, MemoryBank, SamplingCorrection, check_pipeline

    with pytest.raises(ValueError, match="AdversarialBank needs the candidates of queue or batch, .* MemoryBank"):
        check_pipeline([MemoryBank(), AdversarialBank(), SamplingCorrection()], {"id"})
