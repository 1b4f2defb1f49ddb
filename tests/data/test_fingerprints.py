"""A hash of all pixels, and a vector that is alike for pictures that look alike."""

import math

import numpy as np
import pytest
import torch
from pictures import photograph
from PIL import Image
from torch.testing import assert_close


def pixels_of(image):
    from contrastneg.data.decode import decode_image

    return decode_image(image)


def test_the_digest_is_that_of_the_pixels_and_their_arrangement():
    from contrastneg.data.fingerprints import digest_of

    pixels = pixels_of(photograph(0))
    assert torch.equal(digest_of(pixels), digest_of(pixels.clone()))
    assert torch.equal(digest_of(pixels), digest_of(pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)))
    changed = pixels.clone()
    changed[2, 47, 47] ^= 1
    for other in (changed, pixels.view(3, 24, 96), pixels.flip(2)):
        assert not torch.equal(digest_of(pixels), digest_of(other))


@pytest.mark.parametrize(("u", "v"), [(0, 1), (3, 0), (7, 7), (2, 5)])
def test_a_wave_has_its_frequency_alone_times_that_frequency(u, v):
    """Levels 128 + 100 cos(pi u y) cos(pi v x): the orthonormal transform holds 100 * 16 / 2, or / sqrt(2) along a zero frequency."""
    from contrastneg.data.fingerprints import FREQUENCIES, vector_of

    place = (torch.arange(16) + 0.5) / 16
    wave = 128 + 100 * (math.pi * u * place).cos()[:, None] * (math.pi * v * place).cos()
    vector = vector_of(wave.round().to(torch.uint8).expand(3, 16, 16)).view(3, FREQUENCIES, FREQUENCIES)
    height = 100 * 16 * (0.5 if u and v else math.sqrt(0.5)) * math.hypot(u, v)
    expected = torch.zeros(FREQUENCIES, FREQUENCIES)
    expected[u, v] = height
    assert_close(vector, expected.expand(3, -1, -1), rtol=0, atol=0.02 * height)


def test_brightness_contrast_and_size_leave_the_direction_as_it_is():
    from contrastneg.data.fingerprints import vector_of

    levels = 2 * np.asarray(photograph(1)) // 4  # even room above
    vector = vector_of(pixels_of(Image.fromarray(levels)))
    for changed in (levels + 50, 2 * levels, levels.repeat(3, 0).repeat(3, 1)):
        assert_close(torch.cosine_similarity(vector, vector_of(pixels_of(Image.fromarray(changed))), dim=0).item(), 1.0)


def test_pictures_of_one_colour_have_no_direction_and_the_smallest_have_one():
    from contrastneg.data.fingerprints import vector_of

    for level in (0, 77, 255):
        for shape in ((1, 1), (1, 200), (300, 301)):
            assert not vector_of(torch.full((3, *shape), level, dtype=torch.uint8)).any()
    assert vector_of(torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2)).norm() > 0
    assert vector_of(pixels_of(photograph(2, side=5))).shape == (3 * 8 * 8,)
