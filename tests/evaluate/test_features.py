"""Features are complete, in order, and computed without a trace."""

import pytest
import torch
from torch.testing import assert_close


@pytest.fixture
def data():
    from contrastneg import Views
    from contrastneg.data.module import PretrainData
    from contrastneg.data.sources import in_memory_set

    pixels = torch.randint(0, 256, (23, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = in_memory_set(pixels, torch.arange(23) % 3, name="pictures")
    return PretrainData(pictures, Views(size=16), pictures, pictures, batch_size=8)


@pytest.fixture
def encoder():
    from contrastneg.encoders import Backbone, build_backbone

    torch.manual_seed(0)
    network = build_backbone(Backbone(name="resnet9", width=0.125))
    network.train()
    network.stage2.eval()  # a part that was in evaluation mode stays there
    return network


def test_modes_statistics_counters_and_random_generators_stay_as_they_were(data, encoder):
    from contrastneg.evaluate.features import extract

    modes = [module.training for module in encoder.modules()]
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    random = torch.get_rng_state()
    extract(encoder, data, "train", torch.device("cpu"))
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_features_are_those_of_the_encoder_in_evaluation_in_the_order_of_the_set(data, encoder):
    from contrastneg.data.views import eval_view
    from contrastneg.evaluate.features import extract

    found = extract(encoder, data, "test", torch.device("cpu"))
    with torch.no_grad():
        expected = encoder.eval()(eval_view(data.pixels("test"), data.views))
    assert_close(found.x, expected)
    assert torch.equal(found.labels, data.labels("test"))


def test_two_ranks_shares_make_the_whole_without_duplicates(data, encoder, monkeypatch):
    from contrastneg import distributed
    from contrastneg.evaluate.features import extract

    whole = extract(encoder, data, "test", torch.device("cpu")).x
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        parts = list(data.feature_batches("test"))
        shares.append(torch.cat([position for _, position in parts]))
    assert [len(share) for share in shares] == [12, 11]
    assert torch.cat(shares).sort().values.tolist() == list(range(len(whole)))


def test_half_precision_gives_float32_features_near_the_exact_ones(data, encoder):
    from contrastneg.evaluate.features import extract

    exact = extract(encoder, data, "test", torch.device("cpu")).x
    half = extract(encoder, data, "test", torch.device("cpu"), torch.bfloat16).x
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.05 * exact.abs().max()
    double = extract(encoder.double(), data, "test", torch.device("cpu"), torch.float64).x
    assert_close(double, exact, rtol=1e-4, atol=1e-4)
