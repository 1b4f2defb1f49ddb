"""What metadata says of query and candidate: the truth table, boundaries, missing values, duplicates."""

import math

import pytest
import torch

from contrastneg.negatives import Clock, Facts, MetadataTiers, Negatives, Tier
from contrastneg.negatives.metadata import connected

NOW = Clock(5, 10, 0.5, 0)


def pairs(n):
    """Every image against every image; an image is never its own candidate."""
    x = torch.nn.functional.normalize(torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    return Negatives.of(x, x, x, query_id=torch.arange(n), key_id=torch.arange(n))


def after(tiers, columns, n=5):
    stage = MetadataTiers(tiers)
    stage.begin(Facts(n, 4, None, columns))
    return stage(pairs(n), NOW)


def test_the_first_relation_that_fits_decides():
    columns = {
        "duplicate_of": torch.tensor([-1, 0, -1, -1, -1]),
        "sequence": torch.tensor([4, 4, 4, 5, -1]),
        "time": torch.tensor([0.0, 1.0, 3.0, 0.0, 0.0]),
        "location": ["wood", "wood", "wood", "wood", None],
    }
    tiers = [
        Tier("duplicate_of", refers="image"),
        Tier("sequence", action="attract", time="time", within=2.0),
        Tier("sequence", action="weigh"),  # the same sequence, further apart: as it is
        Tier("location", action="weigh", weight=3.0),
    ]
    table = after(tiers, columns)
    own, gone = -math.inf, -math.inf
    boost = pytest.approx(math.log(3))
    assert table.log_weight.tolist() == [
        [own, gone, 0, boost, 0],
        [gone, own, 0, boost, 0],
        [0, 0, own, boost, 0],
        [boost, boost, boost, own, 0],
        [0, 0, 0, 0, own],
    ]
    assert table.attracted.nonzero().tolist() == [[1, 2], [2, 1]]  # a difference of 2 is within 2
    assert torch.equal(table.log_weight, table.log_weight.T)


def test_times_are_compared_to_the_fraction_of_a_second_and_the_largest_difference_is_near():
    group = {"c": torch.zeros(5, dtype=torch.long)}
    since_1970 = [1.8e9, 1.8e9 + 0.25, 1.8e9 + 0.75, 1.8e9 + 100, 1.8e9 + 100.5]
    near = after([Tier("c", time="t", within=0.5)], {**group, "t": since_1970})
    assert (pairs(5).kept & ~near.kept).nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [3, 4], [4, 3]]
    tenths = [0.1, 0.3, 0.5, 0.7, 1.1]
    near = after([Tier("c", time="t", within=0.2)], {**group, "t": tenths})
    assert (pairs(5).kept & ~near.kept).nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    far = after([Tier("c", time="t", within=0.199)], {**group, "t": tenths})
    assert torch.equal(far.kept, pairs(5).kept)
    ever = after([Tier("c", time="t")], {**group, "t": tenths})
    assert not ever.kept.any()


def test_missing_values_match_nothing():
    for column in (
        torch.tensor([-1, -1, 3, 3, -1]),
        torch.tensor([math.nan, math.nan, 0.5, 0.5, math.nan]),
        [None, math.nan, "a", "a", None],
        [-1, -1, 7, 7, None],
    ):
        table = after([Tier("c")], {"c": column})
        assert (pairs(5).kept & ~table.kept).nonzero().tolist() == [[2, 3], [3, 2]]
    near = [Tier("c", time="t", within=1)]
    table = after(near, {"c": torch.zeros(5, dtype=torch.long), "t": [0, 1, None, 3, math.nan]})
    assert (pairs(5).kept & ~table.kept).nonzero().tolist() == [[0, 1], [1, 0]]


def test_duplicates_are_one_group_whoever_names_whom():
    named = torch.tensor([1, 2, -1, 2, -1, 6, 5, -1])  # a chain with a side branch, and two that name each other
    group = connected(named)
    assert group.tolist() == [0, 0, 0, 0, 4, 5, 5, 7]
    long = torch.arange(50) - 1
    assert (connected(long) == 0).all()
    outside = torch.tensor([70, -1, 10**12, 70, 10**12])  # of a larger set, of which these images are a part
    assert connected(outside).tolist() == [0, 1, 2, 0, 2]
    table = after([Tier("copy", refers="image")], {"copy": named}, n=8)
    same = (group[:, None] == group) & ~torch.eye(8, dtype=torch.bool)
    assert torch.equal(pairs(8).kept & ~table.kept, same)
    listed = [None if other < 0 else other for other in named.tolist()]  # as a table with gaps gives it
    assert torch.equal(after([Tier("copy", refers="image")], {"copy": listed}, n=8).kept, table.kept)


def test_repetitions_and_neighbouring_frames_of_the_embedded_set_are_never_negatives():
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    facts = PretrainData(shapes("train"), Views(size=16), batch_size=8).facts(4)
    stage = MetadataTiers([Tier("duplicate_of", refers="image"), Tier("sequence")])
    stage.begin(facts)
    copies = (facts.columns["duplicate_of"] >= 0).nonzero()[:200, 0]
    originals = facts.columns["duplicate_of"][copies]
    x = torch.nn.functional.normalize(torch.randn(200, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    table = stage(Negatives.of(x, x, x, query_id=copies, key_id=originals), NOW)
    assert not table.kept.diagonal().any()
    sequence = facts.columns["sequence"]
    expected = (sequence[copies][:, None] == sequence[originals]) & (sequence[copies] >= 0)[:, None]
    root = stage.group[0]
    assert torch.equal(~table.kept, expected | (root[copies][:, None] == root[originals]))
    assert table.kept.float().mean() > 0.9


def test_a_weight_of_zero_removes_and_schedules_are_followed():
    from contrastneg.schedules import Linear

    columns = {"c": torch.zeros(5, dtype=torch.long)}
    assert after([Tier("c", "weigh", 0.0)], columns).kept.sum() == 0
    table = after([Tier("c", "weigh", Linear(1.0, 3.0))], columns)
    assert table.log_weight[0, 1] == pytest.approx(math.log(2))


def test_columns_that_are_not_there_or_hold_other_things_are_refused():
    with pytest.raises(ValueError, match="Tier.column asks for the column 'd' but the columns of the images are: c, e"):
        after([Tier("d")], {"e": [1] * 5, "c": [2] * 5})
    with pytest.raises(ValueError, match="the columns of the images are: none"):
        after([Tier("d")], {})
    for column, met in ((["a.png", None], "'a.png'"), (torch.tensor([0.5, 1.0]), "0.5"), ([True, None], "True")):
        with pytest.raises(ValueError, match=f"Tier.column names copy, which holds {met}: name a column of indices"):
            after([Tier("copy", refers="image")], {"copy": column}, n=2)
    with pytest.raises(ValueError, match="Tier.time names t, which holds 'noon'"):
        after([Tier("c", time="t", within=1)], {"c": [1] * 5, "t": ["noon", 1, 2, 3, 4]})


def test_settings_are_plain_and_facts_are_not_in_the_checkpoint():
    from contrastneg.config import plain

    stage = MetadataTiers([Tier("c", within=2.0, time="t")])
    stage.begin(Facts(3, 4, None, {"c": [1, 2, 3], "t": [1, 2, 3]}))
    assert not stage.state_dict()
    tier = plain(stage)["init_args"]["tiers"][0]
    assert tier["column"] == "c"
    assert tier["within"] == 2.0
