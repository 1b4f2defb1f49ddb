"""Features are complete, in order, and computed without a trace."""

import pytest
import torch
from processes import script_in_two_processes
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


def test_some_positions_give_the_rows_that_the_whole_set_has_there(data, encoder):
    from contrastneg.evaluate.features import extract

    some = torch.tensor([1, 4, 5, 22])
    whole = extract(encoder, data, "train", torch.device("cpu"))
    part = extract(encoder, data, "train", torch.device("cpu"), only=some)
    for rows in (part, whole.only(some)):
        assert_close(rows.x, whole.x[some])
        assert rows.labels.tolist() == data.labels("train")[some].tolist()
        assert rows.position.tolist() == some.tolist()
    assert whole.only(torch.arange(23)) is whole


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


RANKS = """
import sys, torch, torch.distributed as dist
from contrastneg import Views
from contrastneg.data.module import PretrainData
from contrastneg.data.sources import in_memory_set
from contrastneg.evaluate.features import extract
from contrastneg.evaluate.knn import knn_score
from contrastneg.evaluate.online import OnlineProbe
rank, store, out = int(sys.argv[1]), sys.argv[2], f"{sys.argv[3]}/{sys.argv[1]}.pt"
draw = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (23, 3, 16, 16), generator=draw, dtype=torch.uint8)
pictures = in_memory_set(pixels, torch.arange(23) % 3, name="pictures")
one = in_memory_set(pixels[:1], torch.zeros(1, dtype=torch.long), name="one")
torch.manual_seed(0)
encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
from contrastneg.data.sources import open_source
folder = open_source(sys.argv[4])
next(iter(__import__("pathlib").Path(sys.argv[4]).glob("*/04.png"))).write_bytes(b"broken after it was listed")
def result():
    broken = PretrainData(folder, Views(size=16), folder, folder, loading="stream", skip_bad_images=True)
    some = extract(encoder, broken, "train", torch.device("cpu"))
    data = PretrainData(pictures, Views(size=16), pictures, one, batch_size=8)
    bank, query = (extract(encoder, data, split, torch.device("cpu")) for split in ("train", "test"))
    score = knn_score(bank, bank, k=5, temperature=10.0, num_classes=3, across_ranks=True)
    parts = {"some": some.x, "some_labels": some.labels, "some_position": some.position}
    right = {"right": score.right, "top1": score.top1}  # the ranks take the queries in turns
    return {**parts, "bank": bank.x, "labels": bank.labels, "one": query.x, **right}
whole = result()
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
encoder[1].running_mean += rank  # statistics drift apart on two ranks; those of rank 0 count
shared = result()
probe = OnlineProbe(3, torch.arange(3), lr=0.1)
for step in range(3):
    mine = slice(0, 9) if rank == 0 else slice(9, 23)
    probe.learn(whole["bank"][mine], pictures.labels[mine])
alone = OnlineProbe(3, torch.arange(3), lr=0.1)
dist.destroy_process_group()
for step in range(3):
    alone.learn(whole["bank"], pictures.labels)
torch.save({"whole": whole, "shared": shared, "probe": probe.layer.state_dict(), "alone": alone.layer.state_dict(),
            "own": encoder[1].running_mean - rank}, out)
"""


def test_two_processes_get_what_one_gets_also_where_one_has_no_image_and_where_one_image_breaks(tmp_path):

    from PIL import Image

    for i in range(7):
        (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(tmp_path / "set" / "ab"[i % 2] / f"{i:02}.png")
    store = (tmp_path / "store").as_uri()
    script_in_two_processes(RANKS, store, tmp_path, tmp_path / "set")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert 0 < first["whole"]["right"].sum() < 23  # else their order would not show
    for found in (first, second):
        assert_close(found["shared"], first["whole"])
        assert found["shared"]["some_position"].tolist() == [0, 1, 3, 4, 5, 6]  # a: 00 02 04 06, b: 01 03 05
        assert found["shared"]["some_labels"].tolist() == [0, 0, 0, 1, 1, 1]
        assert_close(found["own"], torch.zeros(4))  # each rank has its own statistics back
        assert_close(found["probe"], first["alone"])
    assert all(torch.equal(tensor, second["probe"][name]) for name, tensor in first["probe"].items())
