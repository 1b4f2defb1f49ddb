"""The scores that end a run: what stands beside the encoder is what its name says."""

import pytest
import torch
from processes import script_in_two_processes


@pytest.fixture
def data():
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    pictures = shapes("train").subset(torch.arange(0, 4000, 20))
    return PretrainData(pictures, Views(size=16), pictures, pictures, batch_size=8)


def settings(pretrained=False, **options):
    from contrastneg import Backbone, Pretrain, SimCLR

    method = SimCLR(Backbone(name="resnet9", width=0.125))
    method.hparams["backbone"]["pretrained"] = pretrained
    return Pretrain(method=method, data="shapes", **{"knn_k": 1, **options})


def scored(config, trained, untrained, data):
    from contrastneg.evaluate.final import final_scores

    said = []
    cpu = torch.device("cpu")
    rows, notes, _ = final_scores(config, trained, untrained, data, cpu, torch.float32, said.append)
    return rows, notes, said


class Blind(torch.nn.Module):
    """Features that are the same for all images."""

    def forward(self, images):
        return torch.ones(len(images), 8)


class Known(torch.nn.Module):
    """Features by which each image, which is in the bank, too, finds itself."""

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def test_an_encoder_that_is_not_better_than_before_is_told_on(data):
    rows, notes, said = scored(settings(), Blind(), Known(), data)
    assert [row["features"] for row in rows] == ["pretrained encoder", "untrained encoder", "raw pixels"]
    assert rows[0]["knn_top1"] < rows[1]["knn_top1"]
    told = "the pretrained encoder is not better than the untrained encoder (kNN {:.1f} against {:.1f} %, linear"
    assert any(note.startswith(told.format(rows[0]["knn_top1"], rows[1]["knn_top1"])) for note in notes)
    assert [line.split(":")[0] for line in said] == [f"scoring the {row['features']}" for row in rows]
    _, notes, _ = scored(settings(), Known(), Blind(), data)
    assert not any("not better than the untrained" in note for note in notes)
    assert any("not better than raw pixels (kNN 100.0 against 100.0 %" in note for note in notes)


def test_every_figure_of_a_score_reaches_its_row_and_the_tables_head(data):
    from rich.console import Console

    from contrastneg.console import score_table
    from contrastneg.evaluate.linear import STRENGTHS

    rows, _, _ = scored(settings(knn_k=500), Known(), Blind(), data)
    assert {row["knn_k"] for row in rows} == {200}  # all there are
    assert all(row["knn_top1"] <= row["knn_top5"] <= 100 for row in rows)
    assert all(row["linear_regularisation"] in STRENGTHS for row in rows)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(score_table(rows, 200))
    assert "kNN, k=200" in capture.get()
    assert f"{rows[0]['knn_top5']:.1f}" in capture.get()
    few = [{name: value for name, value in row.items() if name != "knn_top5"} for row in rows]
    assert len(score_table(few, 200).columns) == 3


def test_weights_that_were_published_are_not_called_untrained(data):
    rows, notes, _ = scored(settings(pretrained=True), Blind(), Known(), data)
    assert rows[1]["features"] == "published weights"
    assert any("not better than the published weights (" in note for note in notes)


def test_images_that_break_are_left_out_counted_and_never_shown(tmp_path):
    from PIL import Image

    from contrastneg.data.module import PretrainData
    from contrastneg.data.sources import UnreadableImage, open_source
    from contrastneg.data.views import Views
    from contrastneg.evaluate.features import extract
    from contrastneg.evaluate.final import pictures

    for i in range(40):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (6 * i, 0, 200 * (i % 2))).save(tmp_path / "ab"[i % 2] / f"{i:02}.png")
    source = open_source(str(tmp_path))
    for i in (0, 10, 21):
        (tmp_path / "ab"[i % 2] / f"{i:02}.png").write_bytes(b"broken after the scan")
    whole, skipping = (
        PretrainData(source, Views(size=8), source, source, loading="stream", skip_bad_images=skip)
        for skip in (False, True)
    )
    with pytest.raises(UnreadableImage, match=r"00\.png"):
        scored(settings(), Known(), Blind(), whole)
    rows, notes, _ = scored(settings(), Known(), Blind(), skipping)
    assert rows[0]["knn_top1"] == rows[2]["knn_top1"] == 100.0
    assert "3 of 40 training images could not be read and are left out" in notes
    assert "3 of 40 test images could not be read and are left out" in notes
    found = extract(Known(), skipping, "train", torch.device("cpu"))
    assert found.labels.tolist() == source.labels[found.position].tolist()
    assert len(pictures(skipping, found, found, seed=0).arrays["neighbour"]) == 12


def noting(score, banks):
    """The same score; the banks that it is given are kept."""

    def noted(bank, *rest, **options):
        banks.append(bank)
        return score(bank, *rest, **options)

    return noted


def test_a_large_bank_is_cut_for_linear_fits_and_raw_pixels_evenly_and_by_seed(data, monkeypatch):
    from contrastneg.evaluate import final

    assert final.MOST_FITTED >= 50_000  # CIFAR-10 stays whole
    monkeypatch.setattr(final, "MOST_FITTED", 50)
    banks = {"knn_score": [], "linear_score": []}
    for name, seen in banks.items():
        monkeypatch.setattr(final, name, noting(getattr(final, name), seen))
    _, notes, said = scored(settings(), Known(), Blind(), data)
    assert [len(bank.x) for bank in banks["knn_score"]] == [200, 200, 50]
    assert [len(bank.x) for bank in banks["linear_score"]] == [50, 50, 50]
    drawn = [bank.position.tolist() for bank in banks["linear_score"]]
    assert drawn[0] == drawn[1] == drawn[2]
    available = data.labels("train").bincount(minlength=16)
    each = banks["linear_score"][0].labels.bincount(minlength=16)
    assert (each >= available.clamp(max=each.max() - 1)).all()  # a class has fewer only where it had no more
    assert sum("linear fits learn from 50 of the 200 labelled training images" in note for note in notes) == 1
    assert "scoring the raw pixels: kNN and linear scores learn from 50 images and are tested on 200" in said
    scored(settings(seed=1), Known(), Blind(), data)
    assert banks["linear_score"][3].position.tolist() != drawn[0]


def test_a_bank_that_is_not_large_is_used_whole_and_nothing_is_said(data, monkeypatch):
    from contrastneg.evaluate import final

    monkeypatch.setattr(final, "MOST_FITTED", 200)
    rows, notes, said = scored(settings(), Known(), Blind(), data)
    assert not any("linear fits learn" in note for note in notes)
    assert "scoring the raw pixels: kNN and linear scores learn from 200 images and are tested on 200" in said
    assert rows[2]["knn_top1"] == 100.0  # each finds itself


RANKS = """
import datetime, sys, time, torch, torch.distributed as dist
import contrastneg as cn
from contrastneg import distributed
from contrastneg.data.module import PretrainData
from contrastneg.data.imageset import in_memory_set
from contrastneg.data.views import Views
from contrastneg.evaluate import final
rank, store, out = int(sys.argv[1]), sys.argv[2], f"{sys.argv[3]}/{sys.argv[1]}.pt"
draw = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (100, 3, 16, 16), generator=draw, dtype=torch.uint8)
pictures = in_memory_set(pixels, torch.arange(100) % 7, name="pictures")
class Known(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
config = cn.Pretrain(method=cn.SimCLR(cn.Backbone(name="resnet9", width=0.125)), data="shapes", knn_k=1)
fits, original = [], final.linear_score
def watched(*banks, **options):
    fits.append(len(banks[0].x))
    time.sleep(pause if len(fits) == 1 else 0)
    return original(*banks, **options)
final.linear_score, final.MOST_FITTED = watched, 60
def rows():
    data = PretrainData(pictures, Views(size=16), pictures, pictures, batch_size=8)
    return final.final_scores(config, Known(), Known(), data, torch.device("cpu"), torch.float32)[0]
pause = 0
alone = rows()
fits.clear()
limit = datetime.timedelta(seconds=6)
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=limit)
pause = 7  # longer than a collective may wait
shared = rows()
def fail():
    raise ValueError("no fit")
try:
    distributed.from_first("fails", fail)
    failed = ""
except (ValueError, RuntimeError) as error:
    failed = str(error)
torch.save({"alone": alone, "shared": shared, "fits": fits, "failed": failed}, out)
"""


def test_of_two_processes_the_first_fits_alone_and_both_get_its_rows(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    script_in_two_processes(RANKS, store, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert (first["fits"], second["fits"]) == ([60] * 3, [])
    assert first["alone"] == first["shared"] == second["shared"]
    assert first["failed"] == "no fit"
    assert "the first process failed at 'fails'" in second["failed"]


def test_features_that_are_not_finite_are_told_beside_the_scores(data):
    class Broken(Known):
        def forward(self, images):
            features = super().forward(images)
            features[0] = torch.nan
            return features

    _, notes, _ = scored(settings(), Broken(), Known(), data)
    assert any("features of the test images are not finite: they count as wrong" in note for note in notes)


def test_without_labels_some_images_are_shown_with_their_nearest_others(monkeypatch):
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views
    from contrastneg.evaluate import final

    monkeypatch.setattr(final, "MOST_SEARCHED", 30)
    data = PretrainData(shapes("train").subset(torch.arange(60)), Views(size=16), batch_size=8)
    shown = final.pictures_without_labels(Known(), data, torch.device("cpu"), torch.float32, seed=0).arrays
    assert shown["view1"].shape == shown["view2"].shape == (12, 3, 16, 16)
    assert shown["neighbour"].shape == (12, 6, 3, 16, 16)
    assert shown["searched"] == 30 + 12 - 1
    assert "query_label" not in shown
    query, near = shown["neighbour_query"], shown["neighbour"]
    assert all((near[i] != query[i]).any(axis=(1, 2, 3)).all() for i in range(12))  # nobody is its own neighbour
    assert (shown["neighbour_similarity"][:, :-1] >= shown["neighbour_similarity"][:, 1:]).all()
    few = PretrainData(shapes("train").subset(torch.arange(4)), Views(size=16), batch_size=2)
    shown = final.pictures_without_labels(Known(), few, torch.device("cpu"), torch.float32, seed=0).arrays
    assert shown["neighbour"].shape == (4, 3, 3, 16, 16)
