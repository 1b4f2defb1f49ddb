"""Several positives per query: SupCon in both forms, SINCERE, and the attraction of false negatives."""

import math

import pytest
import torch
from torch.testing import assert_close

T = 0.2
LABELS = torch.tensor([0, 0, 1, 1, 2, 0])


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.fixture
def views():
    return unit(6, 8, seed=1), unit(6, 8, seed=2)


def written_out(view1, view2, labels, form, margin=0.0):
    """The loss of each anchor in nested loops."""
    anchors, label, count = torch.cat([view1, view2]), labels.repeat(2).tolist(), 2 * len(view1)
    logit = (anchors @ anchors.T / T).tolist()
    values = []
    for a in range(count):
        others = [c for c in range(count) if c != a]
        positives = [c for c in others if (label[c] == label[a] and label[a] >= 0) or c == (a + len(view1)) % count]
        total = sum(math.exp(logit[a][c]) for c in others)
        negatives = sum(math.exp(logit[a][c]) for c in others if c not in positives)
        if form == "out":
            terms = [math.log(total) - logit[a][p] for p in positives]
        elif form == "in":
            terms = [-math.log(sum(math.exp(logit[a][p]) for p in positives) / len(positives) / total)]
        else:
            terms = [math.log(math.exp(logit[a][p] - margin) + negatives) - logit[a][p] for p in positives]
        values.append(sum(terms) / len(terms))
    return torch.tensor(values, dtype=torch.double)


@pytest.mark.parametrize("labels", [LABELS, torch.tensor([-1, 0, -1, 0, 1, 1])], ids=["known", "some_unknown"])
def test_all_forms_are_their_sums_written_out(views, labels):
    from contrastneg.losses import sincere, supervised_contrastive

    assert_close(supervised_contrastive(*views, labels, temperature=T), written_out(*views, labels, "out"))
    assert_close(supervised_contrastive(*views, labels, temperature=T, inside=True), written_out(*views, labels, "in"))
    assert_close(sincere(*views, labels, temperature=T), written_out(*views, labels, "sincere"))
    found = sincere(*views, labels, temperature=T, margin=0.25)
    assert_close(found, written_out(*views, labels, "sincere", margin=0.25))


@pytest.mark.parametrize("labels", [torch.arange(6), torch.full((6,), -1)], ids=["all_different", "unknown"])
def test_with_the_other_view_as_only_positive_all_forms_are_nt_xent(views, labels):
    from contrastneg.losses import nt_xent, sincere, supervised_contrastive

    expected = nt_xent(*views, temperature=T)
    assert_close(supervised_contrastive(*views, labels, temperature=T), expected)
    assert_close(supervised_contrastive(*views, labels, temperature=T, inside=True), expected)
    assert_close(sincere(*views, labels, temperature=T), expected)


def test_the_form_inside_the_logarithm_is_never_larger(views):
    from contrastneg.losses import supervised_contrastive

    outside = supervised_contrastive(*views, LABELS, temperature=T)
    assert (supervised_contrastive(*views, LABELS, temperature=T, inside=True) <= outside + 1e-12).all()


def test_identical_embeddings_give_log_of_2b_minus_1_in_both_forms():
    from contrastneg.losses import supervised_contrastive

    z = unit(1, 8).expand(6, 8)
    for inside in (False, True):
        loss = supervised_contrastive(z, z, LABELS, temperature=T, inside=inside)
        assert_close(loss, torch.full((12,), math.log(11), dtype=torch.double))


def test_solo_learns_supervised_loss_is_the_inside_form_less_log_of_the_number_of_positives(views):
    from contrastneg.losses import supervised_contrastive

    anchors, label = torch.cat(views), LABELS.repeat(2)
    itself = torch.eye(12, dtype=torch.bool)
    same = (label[:, None] == label) & ~itself
    share = torch.softmax((anchors @ anchors.T / T).masked_fill(itself, -math.inf), 1)
    theirs = -(share * same).sum(1).log()
    ours = supervised_contrastive(*views, LABELS, temperature=T, inside=True)
    assert_close(theirs, ours - same.sum(1).double().log())


def test_a_positive_with_more_than_its_share_is_pushed_away_by_supcon_and_never_by_sincere():
    from contrastneg.losses import multi_positive_info_nce, sincere_info_nce

    pos = torch.tensor([0.9], dtype=torch.double, requires_grad=True)
    neg = torch.tensor([[0.1, 0.0, -0.2]], dtype=torch.double, requires_grad=True)
    further = torch.tensor([[True, False, False]])
    share = torch.softmax(torch.cat([pos[:, None], neg], 1) / T, 1).detach()
    multi_positive_info_nce(pos, neg, temperature=T, is_positive=further).sum().backward()
    assert_close(pos.grad, (share[:, 0] - 1 / 2) / T)
    assert_close(neg.grad[:, 0], (share[:, 1] - 1 / 2) / T)
    assert pos.grad > 0  # pushed away
    assert neg.grad[0, 0] < 0
    pos.grad = neg.grad = None
    sincere_info_nce(pos, neg, temperature=T, is_positive=further).sum().backward()
    assert pos.grad < 0
    assert neg.grad[0, 0] < 0


def test_attraction_of_all_images_of_the_class_is_supcon(views):
    from contrastneg.losses import multi_positive_info_nce, supervised_contrastive

    anchors, label, image = torch.cat(views), LABELS.repeat(2), torch.arange(6).repeat(2)
    own = image[:, None] == image
    pos = (anchors * anchors.roll(6, 0)).sum(1)
    keep = ~own  # drop both own views: one is the query, one the positive
    table = (anchors @ anchors.T)[keep].view(12, 10)
    false_negatives = (label[:, None] == label)[keep].view(12, 10)
    found = multi_positive_info_nce(pos, table, temperature=T, is_positive=false_negatives)
    assert_close(found, supervised_contrastive(*views, LABELS, temperature=T))


def test_marking_nothing_is_info_nce(views):
    from contrastneg.losses import info_nce, multi_positive_info_nce, sincere_info_nce

    pos, neg = (views[0] * views[1]).sum(1), views[0] @ unit(9, 8, seed=5).T
    none = torch.zeros_like(neg, dtype=torch.bool)
    expected = info_nce(pos, neg, temperature=T)
    for loss in (multi_positive_info_nce, sincere_info_nce):
        assert_close(loss(pos, neg, temperature=T, is_positive=none), expected)
    assert_close(multi_positive_info_nce(pos, neg, temperature=T, is_positive=none, inside=True), expected)


def test_removing_a_marked_candidate_is_elimination_not_attraction(views):
    from contrastneg.losses import info_nce, multi_positive_info_nce

    pos, neg = (views[0] * views[1]).sum(1), views[0] @ unit(9, 8, seed=5).T
    marked = torch.zeros_like(neg, dtype=torch.bool)
    marked[:, 3] = True
    log_weight = torch.zeros_like(neg).masked_fill(marked, -math.inf)
    found = multi_positive_info_nce(pos, neg, log_weight, temperature=T, is_positive=marked)
    assert_close(found, info_nce(pos, neg, log_weight, temperature=T))


def test_one_class_for_all_gives_sincere_nothing_to_do_and_a_single_image_nothing_at_all(views):
    from contrastneg.losses import sincere, supervised_contrastive

    a, b = (view.clone().requires_grad_() for view in views)
    loss = sincere(a, b, torch.zeros(6, dtype=torch.long), temperature=T)
    assert (loss == 0).all()
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss.sum(), (a, b)))
    for single in (supervised_contrastive, sincere):
        loss = single(a[:1], b[:1], LABELS[:1], temperature=T)
        assert loss.tolist() == [0, 0]
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss.sum(), (a, b)))


def test_renaming_classes_and_reordering_images_change_nothing(views):
    from contrastneg.losses import supervised_contrastive

    loss = supervised_contrastive(*views, LABELS, temperature=T)
    assert_close(supervised_contrastive(*views, 7 - LABELS, temperature=T), loss)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    found = supervised_contrastive(views[0][order], views[1][order], LABELS[order], temperature=T)
    assert_close(found, loss.view(2, 6)[:, order].flatten())


def test_embeddings_pass_gradcheck_and_autocast_changes_nothing(views):
    from contrastneg.losses import sincere, supervised_contrastive

    for loss in (supervised_contrastive, sincere):
        inputs = [view[:4].clone().requires_grad_() for view in views]
        assert torch.autograd.gradcheck(lambda a, b, f=loss: f(a, b, LABELS[:4], temperature=T), inputs)
        singles = [view.float() for view in views]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = loss(*singles, LABELS, temperature=0.01)
        assert torch.equal(inside, loss(*singles, LABELS, temperature=0.01))
        assert inside.isfinite().all()
