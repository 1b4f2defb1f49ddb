"""What an epoch's line is made of."""

import pytest


def test_an_epochs_means_over_ranks_weigh_by_what_each_rank_counted():
    from contrastneg.console import EpochMeter, means_of

    ranks = [EpochMeter(), EpochMeter()]
    ranks[0].add((8.0, 3, 0), (4, 4, 4))  # 4 queries of loss 2, 3 of them hits, none without a candidate
    ranks[1].add((15.0, 1, 1), (3, 2, 3))  # 3 queries of loss 5
    ranks[1].add((0.0, 0, 1), (1, 0, 1))
    means = means_of([meter.numbers for meter in ranks])
    assert means == pytest.approx({"loss": 23 / 8, "accuracy": 4 / 6, "empty": 2 / 8})
    assert ranks[0].means() == ranks[0].global_means() == {"loss": 2.0, "accuracy": 0.75, "empty": 0.0}


def test_an_epoch_without_observations_has_means_of_zero():
    from contrastneg.console import EpochMeter

    assert EpochMeter().means() == {"loss": 0.0, "accuracy": 0.0, "empty": 0.0}
