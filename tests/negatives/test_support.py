"""False negatives by support views: threshold and top-k over the largest of the views' cosines."""

import pytest
import torch

from contrastneg.negatives import Clock, Facts, Negatives, SupportMemory, SupportViews

IMAGES, DIM = 50, 6
NOW = Clock(5, 10, 0.5, 0)


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def table(support=True, form="shared"):
    """Images 0-3 against two views of images 0-19."""
    keys, key_id = unit(40, DIM, seed=2), torch.arange(40) % 20
    if form == "per query":
        keys, key_id = unit(4, 40, DIM, seed=2), key_id.expand(4, -1)
    return Negatives.of(
        unit(4, DIM),
        unit(4, DIM, seed=1),
        keys,
        query_id=torch.arange(4),
        key_id=key_id,
        support=unit(4, 3, DIM, seed=3) if support else None,
    )


def slow(negatives, views, top, threshold):
    """For each row: the columns found, from the definition."""
    found = torch.zeros_like(negatives.kept)
    for i in range(len(found)):
        keys = negatives.keys if negatives.keys.ndim == 2 else negatives.keys[i]
        seen = [negatives.query[i], negatives.positive[i], *views[i]]
        score = {j: max(float(z @ keys[j]) for z in seen) for j in range(len(keys)) if negatives.kept[i, j]}
        for j in sorted(score, key=lambda j: -score[j])[:top]:
            found[i, j] = score[j] > threshold
    return found


@pytest.mark.parametrize("form", ["shared", "per query"])
@pytest.mark.parametrize(("top", "threshold"), [(10, 0.7), (3, 0.2), (100, 0.5), (0, 0.0)])
def test_what_is_found_is_in_the_top_and_above_the_threshold_of_the_largest_cosine(form, top, threshold):
    before = table(form=form)
    after = SupportViews(top=top, threshold=threshold)(before, NOW)
    found = before.kept & ~after.kept
    assert torch.equal(found, slow(before, before.support, top, threshold))
    assert found.sum(1).max() <= top
    assert not found[before.query_id[:, None] == before.key_id].any()  # never the own image


def test_a_threshold_of_one_finds_nothing_and_support_views_find_what_the_query_alone_does_not():
    before = table()
    assert torch.equal(SupportViews(threshold=1.0)(before, NOW).kept, before.kept)
    with_views = SupportViews(threshold=0.6, top=100)(before, NOW).kept
    without = prepared(0, threshold=0.6, top=100)(table(support=False), NOW).kept
    assert (with_views <= without).all()
    assert (with_views < without).any()


def test_a_method_that_makes_no_support_views_is_refused():
    from contrastneg.negatives import check_pipeline

    with pytest.raises(ValueError, match="SupportViews needs further views of each image"):
        check_pipeline([SupportViews()], {"id", "queue"})
    with pytest.raises(ValueError, match="without support views"):
        SupportViews()(table(support=False), NOW)


def prepared(depth, **settings):
    stage = SupportMemory(depth=depth, **settings)
    stage.begin(Facts(IMAGES, DIM))
    return stage


def test_past_keys_of_the_same_image_stand_for_its_views():
    stage = prepared(2, threshold=0.4, top=100)
    first, second, third = (unit(4, DIM, seed=seed) for seed in (10, 11, 12))
    before = table(support=False)
    for round_, keys in enumerate((first, second, third)):
        views = [[], [first], [first, second], [second, third]][round_]
        views = torch.stack(views, dim=1) if views else torch.zeros(4, 0, DIM, dtype=torch.double)
        assert torch.equal(before.kept & ~stage(before, NOW).kept, slow(before, views, 100, 0.4))
        stage.update(keys, torch.arange(4), NOW)
    views = torch.stack([second, third], dim=1)
    assert torch.equal(before.kept & ~stage(before, NOW).kept, slow(before, views, 100, 0.4))


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_the_last_keys_of_each_image_are_kept_however_they_come(depth):
    stage, history = prepared(depth), {image: [] for image in range(IMAGES)}
    draw = torch.Generator().manual_seed(0)
    for step in range(12):
        image = torch.randint(6, (9,), generator=draw)  # the same image several times in a batch
        keys = unit(9, DIM, seed=100 + step).float()
        stage.update(keys, image, NOW)
        for row, owner in zip(keys, image.tolist(), strict=True):
            history[owner].append(row)
    for image in range(6):
        held = {tuple(row.tolist()) for row in stage.past[image]}
        last = history[image][len(history[image]) - depth :]
        assert held == {tuple(row.tolist()) for row in last}


def test_the_memory_survives_a_checkpoint():
    stage = prepared(2, threshold=0.4)
    stage.update(unit(4, DIM, seed=10), torch.arange(4), NOW)
    again = SupportMemory(depth=2, threshold=0.4)
    again.load_state_dict(stage.state_dict())
    assert torch.equal(again(table(), NOW).kept, stage(table(), NOW).kept)
