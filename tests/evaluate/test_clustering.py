"""k-means clusters against classes."""

import pytest
import torch

from contrastneg.evaluate.clustering import clustering_score
from contrastneg.evaluate.features import Features


def test_classes_apart_are_found_whatever_their_numbers() -> None:
    labels = torch.tensor([4, 9, 7]).repeat(20)
    x = torch.eye(10)[labels] + 0.05 * torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    score = clustering_score(Features(x, labels), seed=0)
    assert (score.nmi, score.ari, score.accuracy) == pytest.approx((1, 1, 1))
    assert score.clusters == 3


def test_features_that_know_nothing_agree_by_chance() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (400,), generator=draws)
    score = clustering_score(Features(torch.randn(400, 6, generator=draws), labels), seed=0)
    assert abs(score.ari) < 0.03
    assert score.nmi < 0.05
    assert 0.25 <= score.accuracy < 0.4


def test_the_matching_is_one_to_one() -> None:
    """Six images of one class in two clusters, one image of another class in the larger: only one cluster may count."""
    x = torch.tensor([[1.0, 0], [1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0], [1.0, 0]])
    score = clustering_score(Features(x, torch.tensor([0, 0, 0, 0, 0, 0, 1])), seed=0)
    assert score.accuracy == pytest.approx(max(4 + 0, 2 + 1) / 7)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="of which there is 1"):
        clustering_score(Features(torch.randn(4, 2), torch.tensor([0, 0, -1, 0])), seed=0)
