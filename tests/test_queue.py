"""The ring of keys: slots, unfilled rows, own images, checkpoints."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close


def filled(size, batches, dim=2):
    from contrastneg.queue import KeyQueue

    queue = KeyQueue(size, dim)
    start = 0
    for batch in batches:
        ids = torch.arange(start, start + batch)
        queue.push(ids[:, None].expand(-1, dim).float(), ids)
        start += batch
    return queue


@pytest.mark.parametrize(
    ("size", "batches", "slots", "pointer"),
    [
        (8, [3] * 5, [8, 9, 10, 11, 12, 13, 14, 7], 7),
        (4, [6], [4, 5, 2, 3], 2),
        (10, [4, 4, 4, 2], [10, 11, 12, 13, 4, 5, 6, 7, 8, 9], 4),
    ],
)
def test_slots_after_pushes_that_do_not_divide_the_size(size, batches, slots, pointer):
    queue = filled(size, batches)
    assert queue.image_id.tolist() == slots
    assert queue.keys[:, 0].tolist() == slots
    assert queue.pointer == pointer


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 12), batches=st.lists(st.integers(0, 15), max_size=8))
def test_the_queue_holds_the_last_keys_of_the_stream(size, batches):
    queue = filled(size, batches)
    total = sum(batches)
    assert sorted(queue.candidates()[1].tolist()) == list(range(max(0, total - size), total))
    assert len(queue) == min(total, size)


def test_unfilled_slots_are_no_candidates():
    counts = [len(filled(8, [3] * n).candidates()[0]) for n in range(4)]
    assert counts == [0, 3, 6, 8]


def test_unfilled_slots_do_not_enter_the_loss():
    from contrastneg.logsumexp import one_pass_logsumexp
    from contrastneg.losses import info_nce, info_nce_from_logsumexp
    from contrastneg.queue import KeyQueue

    queue = KeyQueue(8, 2)
    cosines = torch.tensor([0.1, 0.2, 0.3])
    queue.push(torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1), torch.tensor([5, 6, 7]))
    query, pos = torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])
    keys, _ = queue.candidates()
    lse = one_pass_logsumexp(query, keys, temperature=0.5)
    assert_close(info_nce_from_logsumexp(pos, lse, temperature=0.5), torch.tensor([0.981502]), atol=1e-6, rtol=0)
    assert_close(info_nce(pos, query @ keys.T, temperature=0.5), torch.tensor([0.981502]), atol=1e-6, rtol=0)


def test_before_any_key_the_loss_is_zero_with_a_finite_gradient():
    from contrastneg.logsumexp import one_pass_logsumexp
    from contrastneg.losses import info_nce_from_logsumexp
    from contrastneg.queue import KeyQueue

    query = torch.tensor([[0.6, 0.8]], requires_grad=True)
    lse = one_pass_logsumexp(query, KeyQueue(8, 2).candidates()[0], temperature=0.1)
    loss = info_nce_from_logsumexp((query * query.detach()).sum(1), lse, temperature=0.1)
    loss.sum().backward()
    assert loss.item() == 0
    assert query.grad.tolist() == [[0, 0]]


@pytest.mark.parametrize("path", ["one_pass", "table"])
def test_older_copies_of_the_own_image_are_no_negatives(path):
    from contrastneg.contrast import contrast
    from contrastneg.negatives import Clock, UniformSubset

    one_hot = torch.eye(10)
    queue = filled(32, [])
    queue.keys = torch.zeros(32, 10)
    for _ in range(2):  # two epochs of ten images in batches of five
        for start in (0, 5):
            ids = torch.arange(start, start + 5)
            queue.push(one_hot[ids], ids)
    ids = torch.arange(5)
    keys, key_id = queue.candidates()
    stages = [] if path == "one_pass" else [UniformSubset(1000)]
    loss, _, _ = contrast(one_hot[ids], one_hot[ids], ids, keys, key_id, stages, 0.1, Clock(0, 1, 0.0, 0))
    assert_close(loss, torch.full((5,), 0.000817), atol=1e-6, rtol=0)
    assert_close(loss[0].item(), math.log(1 + 18 * math.exp(-10)), atol=1e-6, rtol=0)


def test_a_queue_restored_from_its_state_goes_on_where_it_was():
    from contrastneg.queue import KeyQueue

    queue, copy = filled(5, [3, 4]), KeyQueue(5, 2)
    copy.load_state_dict(queue.state_dict())
    for one in (queue, copy):
        one.push(torch.full((2, 2), 9.0), torch.tensor([90, 91]))
    for name, buffer in queue.state_dict().items():
        assert_close(copy.state_dict()[name], buffer)
    assert len(copy) == len(queue)


@pytest.mark.parametrize(("size", "dim"), [(6, 2), (5, 3)])
def test_a_checkpoint_of_another_shape_is_refused_with_both_numbers(size, dim):
    from contrastneg.queue import KeyQueue

    with pytest.raises(ValueError, match=f"{size} keys of width {dim} but the checkpoint holds 5 of width 2"):
        KeyQueue(size, dim).load_state_dict(filled(5, [3]).state_dict())


def test_a_push_after_scoring_does_not_disturb_the_backward_pass():
    from contrastneg.logsumexp import one_pass_logsumexp
    from contrastneg.negatives import Negatives

    for copy in (False, True):
        queue = filled(6, [6])
        query = torch.randn(3, 2, requires_grad=True)
        keys, key_id = queue.candidates(copy=copy)
        if copy:
            table = Negatives.of(query, query.detach(), keys, query_id=torch.tensor([70, 71, 72]), key_id=key_id)
            result = table.similarity.logsumexp(1)
        else:
            result = one_pass_logsumexp(query, keys, temperature=1.0)
        expected = torch.autograd.grad((query @ queue.keys.clone().T).logsumexp(1).sum(), query)[0]
        queue.push(torch.full((4, 2), 99.0), torch.arange(4))
        result.sum().backward()
        assert_close(query.grad, expected)


def test_bfloat16_keys_take_half_the_memory_and_stay_near():
    from contrastneg.queue import KeyQueue

    keys = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    queue = KeyQueue(8, 16, torch.bfloat16)
    queue.push(keys, torch.arange(8))
    assert queue.keys.dtype == torch.bfloat16
    assert_close(queue.keys.float(), keys, atol=4e-3, rtol=0)


def test_sizes_below_one_and_keys_of_another_width_are_refused():
    from contrastneg.queue import KeyQueue

    with pytest.raises(ValueError, match="at least 1"):
        KeyQueue(0, 4)
    with pytest.raises(ValueError, match="width 2 but was given width 3"):
        KeyQueue(4, 2).push(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))


def test_keys_without_one_image_each_are_refused():
    import inspect

    from contrastneg import KeyQueue

    push = inspect.unwrap(KeyQueue.push)  # as it is without the type checks of these tests
    with pytest.raises(ValueError, match="2 keys were pushed with 3 image ids"):
        push(KeyQueue(4, 2), torch.zeros(2, 2), torch.zeros(3, dtype=torch.long))
