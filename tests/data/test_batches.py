"""Which images share a batch: walks on a graph of similar images."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from processes import two_commands


def cliques(count, size):
    """Embeddings of ``count`` groups of ``size`` images: alike within a group, at right angles between groups."""
    return torch.eye(count).repeat_interleave(size, dim=0)


def walked(embeddings, epoch=1, seed=0, **settings):
    from contrastneg.data.batches import GraphWalkBatches

    batches = GraphWalkBatches(**{"candidates": len(embeddings), "neighbours": 3, **settings})
    batches.refresh(lambda: embeddings, seed, epoch)
    return batches


def test_batches_as_large_as_the_cliques_of_a_graph_are_the_cliques():
    batches = walked(cliques(6, 8), neighbours=7)
    for epoch in (1, 2):
        order = batches.order(48, 8, 0, epoch)
        assert [len(set((part // 8).tolist())) for part in order.split(8)] == [1] * 6
        assert order.sort().values.tolist() == list(range(48))


def test_a_batch_larger_than_a_clique_takes_further_cliques_whole():
    for part in walked(cliques(8, 4)).order(32, 8, 0, 1).split(8):
        assert sorted((part // 4).bincount().tolist())[-2:] == [4, 4]


def test_restart_1_gives_the_shuffled_batches():
    from contrastneg.data.batches import ShuffledBatches

    order = walked(cliques(6, 8), restart=1.0, restart_drop=0.0).order(48, 8, 3, 1)
    shuffled = ShuffledBatches().order(48, 8, 3, 1)
    for mine, plain in zip(order.split(8), shuffled.split(8), strict=True):
        assert sorted(mine.tolist()) == sorted(plain.tolist())


def test_a_step_returns_to_the_seed_with_the_probability_of_its_epoch(monkeypatch):
    from contrastneg.data import batches as module

    seen = []
    walk = module.walk

    def spy(graph, start, steps, follow, draws):
        seen.append(round(1 - follow, 6))
        return walk(graph, start, steps, follow, draws)

    monkeypatch.setattr(module, "walk", spy)
    batches = walked(cliques(2, 8), neighbours=7)
    probabilities = []
    for epoch in (0, 4, 5, 9, 10, 100):
        batches.order(16, 8, 0, epoch)
        probabilities.append(seen[-1])
    assert probabilities == [0.2, 0.2, 0.1, 0.1, 0.05, 0.05]


def test_a_lower_restart_probability_reaches_farther_from_the_seed():
    from contrastneg.data.batches import GraphWalkBatches

    shift = torch.tensor([step for step in range(-10, 11) if step])
    ring = {"neighbours": (torch.arange(400)[:, None] + shift) % 400, "built": 0}  # each image beside the next ten
    reach = {}
    for restart in (0.9, 0.02):
        batches = GraphWalkBatches(neighbours=20, once=False, restart=restart, restart_drop=0.0, restart_least=0.0)
        batches.load_state_dict(ring)
        angles = [2 * torch.pi * part / 400 for part in batches.order(400, 8, 0, 0).split(8)]
        reach[restart] = sum(float(1 - torch.hypot(a.cos().mean(), a.sin().mean())) for a in angles)
    assert reach[0.02] > 1.5 * reach[0.9]


@pytest.mark.parametrize(("images", "per_step"), [(37, 8), (5, 8), (8, 8), (9, 2)])
def test_every_image_is_shown_once_or_else_no_image_twice_in_a_batch(images, per_step):
    embeddings = F.normalize(torch.randn(images, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    order = walked(embeddings).order(images, per_step, 0, 1)
    assert order.sort().values.tolist() == list(range(images))
    anew = walked(embeddings, once=False).order(images, per_step, 0, 1)
    assert [len(part) for part in anew.split(per_step)] == [len(part) for part in order.split(per_step)]
    assert all(len(part.unique()) == len(part) for part in anew.split(per_step))


def test_walked_anew_an_epoch_shows_some_images_more_than_once():
    assert len(walked(cliques(8, 8), neighbours=7, once=False).order(64, 8, 0, 1).unique()) < 64


def test_before_its_start_and_between_graphs_the_embeddings_are_not_asked_for():
    from contrastneg.data.batches import GraphWalkBatches, ShuffledBatches

    asked = []

    def embeddings():
        asked.append(epoch)
        return cliques(4, 4)

    batches = GraphWalkBatches(candidates=16, neighbours=3, start=2, every=3)
    for epoch in range(9):
        batches.refresh(embeddings, 0, epoch)
        if epoch < 2:
            assert torch.equal(batches.order(16, 4, 0, epoch), ShuffledBatches().order(16, 4, 0, epoch))
    assert asked == [2, 5, 8]


def test_the_graph_is_that_of_nearest_neighbours_where_all_images_are_compared():
    from contrastneg.data.batches import proximity_graph
    from contrastneg.negatives.graph import knn_graph

    embeddings = F.normalize(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    embeddings[7] = torch.nan
    found = proximity_graph(embeddings, 1000, 5, torch.Generator().manual_seed(0))
    assert torch.equal(found, knn_graph(embeddings, 5)[0])
    few = proximity_graph(embeddings, 20, 5, torch.Generator().manual_seed(0))
    assert (few[7] == -1).all()
    assert not (few == 7).any()
    assert not (few == torch.arange(300)[:, None]).any()
    assert not torch.equal(few, found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"candidates": 10}, "GraphWalkBatches.candidates is 10: give a number of at least 100"),
        ({"restart": 1.5}, "GraphWalkBatches.restart is 1.5: give a number from 0 to 1"),
        ({"every": 0}, "GraphWalkBatches.every is 0: give a number of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, words):
    from contrastneg.data.batches import GraphWalkBatches

    with pytest.raises(ValueError, match=words):
        GraphWalkBatches(**settings)


# -- in the data module ---------------------------------------------------------------------------------------------


def data_of(loading="memory", embed=lambda: cliques(5, 8), **options):
    from contrastneg.data.batches import GraphWalkBatches
    from contrastneg.data.module import PretrainData
    from contrastneg.data.sources import in_memory_set
    from contrastneg.data.views import Views

    pixels = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batches = GraphWalkBatches(candidates=40, neighbours=7)
    data = PretrainData(
        in_memory_set(pixels, name="x"), Views(size=8), batch_size=8, batches=batches, loading=loading, **options
    )
    data.embed = embed
    return data


def ids_of(iterator):
    return [batch.image_id.tolist() for batch in iterator]


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_both_ways_in_give_the_batches_of_the_graph_and_resume_within_an_epoch_from_the_saved_one(loading):
    data = data_of(loading)
    loader = data.train_dataloader()
    loader.set_epoch(1)
    iterator = iter(loader)
    first = ids_of([next(iterator), next(iterator)])
    saved = pickle.loads(pickle.dumps(data.state_dict()))
    rest = ids_of(iterator)
    assert [len({i // 8 for i in batch}) for batch in first + rest] == [1] * 5

    def never():
        raise AssertionError("the embeddings of now are not those of the epoch's start")

    resumed = data_of(loading, never)
    resumed.load_state_dict(saved)
    loader = resumed.train_dataloader()
    loader.set_epoch(1)
    assert ids_of(loader) == rest


def test_a_set_of_images_without_gaps_in_its_indices_or_with_them_is_asked_by_position():
    data = data_of(embed=lambda: cliques(5, 8).flip(0))
    data.sets["pretrain"] = data.sets["pretrain"].subset(torch.arange(39, 7, -1))
    loader = data.train_dataloader()
    loader.set_epoch(1)
    assert [len({i // 8 for i in batch}) for batch in ids_of(loader)] == [1] * 4


def test_two_ranks_share_each_batch_without_overlap(monkeypatch):
    from contrastneg import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        data = data_of()
        data.batch_size = 4
        loader = data.train_dataloader()
        loader.set_epoch(1)
        ranks.append(ids_of(loader))
    assert all(len(batch) == 4 for rank in ranks for batch in rank)
    assert [len({i // 8 for i in one + other}) for one, other in zip(*ranks, strict=True)] == [1] * 5
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(40))


def test_without_embeddings_the_data_module_says_what_is_lacking():
    data = data_of(embed=None)
    loader = data.train_dataloader()
    loader.set_epoch(1)
    with pytest.raises(ValueError, match="GraphWalkBatches follows embeddings: set `embed` of the data module"):
        next(iter(loader))


# -- whole runs -----------------------------------------------------------------------------------------------------

SETTINGS = """
data: shapes
limit_images: 48
method:
  class_path: SimCLR
  init_args:
    backbone: {name: resnet9, width: 0.125}
batches:
  class_path: GraphWalkBatches
  init_args: {candidates: 24, neighbours: 6}
batch_size: 8
accelerator: cpu
final_scores: false
knn_every: 0
log_every: 1
progress: false
checkpoint_every: 1
epochs: 3
"""


def losses(run):
    import csv

    with (run / "metrics.csv").open() as stream:
        return [row["train/loss"] for row in csv.DictReader(stream) if row["train/loss"]]


def test_a_run_from_yaml_stopped_within_an_epoch_and_resumed_takes_the_steps_of_the_unbroken_one(tmp_path, monkeypatch):
    from contrastneg.__main__ import main
    from contrastneg.data import batches

    (tmp_path / "settings.yaml").write_text(SETTINGS)
    config = ["pretrain", "--config", str(tmp_path / "settings.yaml")]
    assert main([*config, "--run", str(tmp_path / "whole")]) == 0
    assert main([*config, "--run", str(tmp_path / "plain"), "--batches", "ShuffledBatches"]) == 0
    whole = losses(tmp_path / "whole")
    assert len(whole) == 18
    assert whole[:6] == losses(tmp_path / "plain")[:6]  # the first epoch has no graph yet
    assert whole[6:] != losses(tmp_path / "plain")[6:]

    order, served = batches.GraphWalkBatches.order, []

    def dies(self, images, per_step, seed, epoch):
        served.append(epoch)
        return order(self, images, per_step, seed, epoch)

    monkeypatch.setattr(batches.GraphWalkBatches, "order", dies)
    monkeypatch.setattr("contrastneg.pretrain.StepSeed.on_train_batch_start", stop_at(1, 4))
    with pytest.raises(KeyError, match="stop"):
        main([*config, "--run", str(tmp_path / "broken")])
    monkeypatch.undo()
    assert served == [0, 1]
    assert main(["pretrain", "--resume", str(tmp_path / "broken")]) == 0
    assert losses(tmp_path / "broken") == whole


def stop_at(epoch, batch):
    def on_train_batch_start(self, trainer, module, batch_of_images, batch_idx):
        if (trainer.current_epoch, batch_idx) == (epoch, batch):
            raise KeyError("stop")

    return on_train_batch_start


def test_two_processes_walk_the_same_batches(tmp_path):
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    options = ["--devices", "2", "--batch_size", "4", "--epochs", "2", "--run", tmp_path / "run"]
    for process in two_commands("pretrain", "--config", tmp_path / "settings.yaml", *options):
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    assert len(losses(tmp_path / "run")) == 12


def test_a_misspelt_class_or_setting_of_batches_is_answered_with_the_nearest(capsys):
    from contrastneg.__main__ import main

    assert main(["pretrain", "shapes", "--batches", "GraphWalkBatch"]) == 2
    assert "did you mean GraphWalkBatches?" in capsys.readouterr().err
    assert main(["pretrain", "shapes", "--batches", "GraphWalkBatches", "--batches.neighbour", "3"]) == 2
    assert "did you mean neighbours?" in capsys.readouterr().err
