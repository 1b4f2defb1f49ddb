"""Images of one origin."""

import pytest
import torch


@pytest.mark.parametrize(
    "column",
    [
        torch.tensor([3, -1, 3, -1]),
        torch.tensor([3.0, -1.0, 3.0, -1.0]),
        torch.tensor([3.0, torch.nan, 3.0, torch.nan]),
        ["a", "", "a", "None"],
    ],
    ids=["numbers", "decimals", "no number", "text"],
)
def test_images_without_an_origin_are_each_their_own(column):
    from contrastneg.data.imageset import ImageSet
    from contrastneg.evaluate.groups import groups_of

    pixels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    number = groups_of(
        ImageSet("set", "test", "set", torch.arange(4), pixels=pixels, columns={"group": column}), "group"
    )
    assert number[0] == number[2]
    assert len(number.unique()) == 3
