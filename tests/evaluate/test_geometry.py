"""Ranks, spectra and tolerance of features: closed forms and slow references."""

import pytest
import torch
import torch.nn.functional as F

from contrastneg.evaluate.geometry import decay_exponent, lidar, rankme, spectrum, tolerance


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_orthonormal_directions_have_their_number_as_rank(rank: int) -> None:
    columns = torch.linalg.qr(draws(200, rank)).Q
    features = columns @ torch.linalg.qr(draws(16, rank, seed=1)).Q.T
    assert rankme(features) == pytest.approx(rank, abs=2e-4)


@pytest.mark.parametrize("images", [300, 8])
def test_rankme_takes_singular_values_of_features_that_are_not_centred(images) -> None:
    features = draws(images, 12) * torch.linspace(1, 3, 12) + 2
    share = torch.linalg.svdvals(features.double())
    share = share / share.sum() + 1e-7
    assert rankme(features) == pytest.approx(float((-(share * share.log()).sum()).exp()), rel=1e-6)


def test_rankme_is_at_most_the_number_of_images_and_the_width() -> None:
    assert rankme(draws(5, 64)) <= 5 + 1e-3
    assert 4 < rankme(draws(64, 5)) <= 5 + 1e-3


def test_identical_views_of_orthonormal_means_have_a_lidar_of_images_less_one() -> None:
    views = torch.eye(9, 20)[:, None].expand(9, 4, 20)
    assert lidar(views) == pytest.approx(8, abs=1e-3)


def test_lidar_is_the_effective_rank_of_whitened_scatter() -> None:
    views = (draws(40, 1, 6) * torch.linspace(0.5, 2, 6) + 0.3 * draws(40, 5, 6, seed=1)).double()
    mean = views.mean(dim=1)
    between = torch.zeros(6, 6, dtype=torch.float64)
    within = 1e-4 * torch.eye(6, dtype=torch.float64)
    for image in range(40):
        apart = mean[image] - mean.mean(dim=0)
        between += torch.outer(apart, apart) / 39
        for view in range(5):
            rest = views[image, view] - mean[image]
            within += torch.outer(rest, rest) / (40 * 4)
    value, vector = torch.linalg.eigh(within)
    root = vector @ torch.diag(value**-0.5) @ vector.T
    share = torch.linalg.eigvalsh(root @ between @ root)
    share = share / share.sum() + 1e-8
    assert lidar(views.float()) == pytest.approx(float((-(share * share.log()).sum()).exp()), rel=1e-5)


@pytest.mark.parametrize("images", [500, 4])
def test_spectrum_is_that_of_the_covariance_whatever_the_mean_and_with_fewer_images_than_features(images) -> None:
    features = draws(images, 7) + 5
    expected = torch.linalg.eigvalsh(torch.cov(features.double().T)).flip(0)
    torch.testing.assert_close(spectrum(features), expected, rtol=1e-9, atol=1e-9)


def test_rows_taken_in_parts_give_the_same_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    features = draws(100, 5)
    whole = spectrum(features)
    monkeypatch.setattr("contrastneg.evaluate.geometry.ROWS", 7)
    torch.testing.assert_close(spectrum(features), whole)


def test_a_power_law_gives_its_exponent() -> None:
    eigenvalues = torch.arange(1, 201, dtype=torch.float64) ** -1.3
    assert decay_exponent(eigenvalues) == pytest.approx(1.3, abs=1e-9)
    eigenvalues[0] = 50  # outside the range of the fit
    assert decay_exponent(eigenvalues) == pytest.approx(1.3, abs=1e-9)


def test_collapsed_dimensions_do_not_enter_the_exponent() -> None:
    eigenvalues = torch.cat([torch.arange(1, 51, dtype=torch.float64) ** -0.8, torch.zeros(50, dtype=torch.float64)])
    assert decay_exponent(eigenvalues) == pytest.approx(0.8, abs=1e-9)


def test_tolerance_is_the_mean_cosine_of_pairs_of_one_class() -> None:
    features, labels = draws(30, 4), torch.arange(30) % 4
    labels[::7] = -1
    unit = F.normalize(features.double(), dim=1)
    cosines = [
        float(unit[i] @ unit[j]) for i in range(30) for j in range(i) if labels[i] >= 0 and labels[i] == labels[j]
    ]
    assert tolerance(features, labels) == pytest.approx(sum(cosines) / len(cosines), abs=1e-9)


@pytest.mark.parametrize(
    ("measure", "problem"),
    [
        (lambda: rankme(torch.zeros(4, 3)), "rank cannot be measured"),
        (lambda: rankme(torch.tensor([[1.0, torch.nan]])), "not finite"),
        (lambda: lidar(draws(1, 3, 4)), "at least 2 images"),
        (lambda: lidar(draws(3, 1, 4)), "2 views"),
        (lambda: spectrum(draws(1, 4)), "at least 2 images"),
        (lambda: decay_exponent(torch.tensor([1.0, 0.5, 0.0])), "cannot be fitted"),
        (lambda: tolerance(draws(2, 3), torch.tensor([0, 1])), "there are none"),
        (lambda: tolerance(torch.zeros(2, 3), torch.tensor([1, 1])), "length 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        measure()
