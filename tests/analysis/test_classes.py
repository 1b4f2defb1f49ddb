"""Clusters in the place of labels."""

import torch

from contrastneg.analysis import estimated_classes


def test_clusters_of_classes_that_are_apart_are_the_classes_and_are_named_an_estimate():
    noise = 0.05 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    label = torch.arange(4).repeat_interleave(10)
    found = estimated_classes(torch.eye(4)[label] + noise, 4, seed=2)
    assert torch.equal(found.label[:, None] == found.label, label[:, None] == label)
    assert found.source == "estimate: 4 clusters, seed 2"
