"""What holds for every source with a memory; the memory bank; mined neighbours."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

IMAGES, DIM = 40, 6
SOURCES = [
    "MemoryBank",
    "MinedNeighbours",
    "GraphWalk",
    "CooccurrenceRows",
    "PageRankBand",
    "GuidedWalk",
    "HardCache",
    "ScoreHistory",
    "MetropolisChain",
]
SMALL = {
    "MemoryBank": {"count": 16},
    "MinedNeighbours": {"size": 8, "count": 4, "uniform": 4, "start": 0},
    "GraphWalk": {"walks": 12},
    "CooccurrenceRows": {"count": 12},
    "PageRankBand": {"walks": 30, "steps": 10, "growing": False, "skip": 0, "end": 0.5},
    "GuidedWalk": {"count": 2, "pool": 6},
    "HardCache": {"size": 6, "explore": 4, "count": 4},
    "ScoreHistory": {"size": 6, "explore": 4, "count": 4},
    "MetropolisChain": {"chains": 5},
}


def clock(step=0, **changes):
    from contrastneg.negatives import Clock

    return replace(Clock(step, 100, step / 5, 0), **changes)


def units(rows, seed=0, dtype=torch.float32):
    return normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def make(name, combine="replace", begun=True, **settings):
    from contrastneg import negatives
    from contrastneg.negatives import Edges, Facts

    if name in ("GraphWalk", "CooccurrenceRows", "PageRankBand", "GuidedWalk", "MetropolisChain"):
        settings.setdefault("edges", Edges(neighbours=5, start=0))
    stage = getattr(negatives, name)(**SMALL[name] | settings, combine=combine)
    if begun:
        stage.begin(Facts(IMAGES, DIM))
    return stage


def lived(stage, steps=10, refreshed=True, rank=0, start=0):
    """The stage after some steps of eight images each, and with a graph if it has one."""
    for step in range(start, start + steps):
        now = clock(step, rank=rank)
        if refreshed and step % 5 == 0:
            stage.refresh(lambda: units(IMAGES, seed=7), now)
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(step // 5))
        ids = order[step % 5 * 8 :][:8]  # five steps are an epoch
        stage.update(units(8, seed=100 + step), ids, now)
    return stage


def table(queries=6, keys=9, seed=1, dtype=torch.float32, per_query=False, query_grad=False):
    from contrastneg.negatives import Negatives

    query = units(queries, seed, dtype).requires_grad_(query_grad)
    bank = units(keys * (queries if per_query else 1), seed + 1, dtype)
    key_id = torch.arange(keys) + 3  # queries 3 to 5 meet their own image
    if per_query:
        bank, key_id = bank.view(queries, keys, DIM), key_id.expand(queries, -1)
    return Negatives.of(query, units(queries, seed + 2, dtype), bank, query_id=torch.arange(queries), key_id=key_id)


def candidates(negatives):
    """Kept images of each query, sorted."""
    ids = negatives.key_id.expand(len(negatives.query), -1)
    return [sorted(row[kept].tolist()) for row, kept in zip(ids, negatives.kept, strict=True)]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("combine", ["replace", "append"])
def test_candidates_are_remembered_images_with_their_keys_never_the_own_and_none_twice(name, combine):
    stage = lived(make(name, combine), steps=3, refreshed=name not in ("MemoryBank", "HardCache", "ScoreHistory"))
    before = table(keys=0) if combine == "append" else table()
    after = stage(before, clock(4))
    found = candidates(after)
    assert any(found)
    for own, row in enumerate(found):
        assert own not in row
        assert len(set(row)) == len(row)
        assert stage.memory.filled[torch.tensor(row, dtype=torch.long)].all()
    ids = after.key_id.expand(6, -1)
    keys = after.keys if after.keys.ndim == 3 else after.keys.expand(6, -1, -1)
    assert_close(keys[after.kept], stage.memory.keys[ids[after.kept]])
    assert_close(after.similarity[after.kept], (keys @ before.query[:, :, None]).squeeze(2)[after.kept])
    assert after.n_keys == after.similarity.shape[1] == after.key_id.shape[-1]


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_remembered_gives_loss_zero_and_zero_gradient(name):
    from contrastneg.losses import info_nce

    before = table(query_grad=True)
    after = make(name)(before, clock())
    assert not after.kept.any()
    info_nce(after.positive_similarity, after.similarity, after.log_weight, temperature=0.1).sum().backward()
    assert before.query.grad is None or not before.query.grad.any()
    empty = make(name, "append")(table(keys=0), clock())
    assert not empty.kept.any()
    loss = info_nce(empty.positive_similarity, empty.similarity, empty.log_weight, temperature=0.1)
    assert torch.equal(loss, torch.zeros(6))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("per_query", [False, True])
def test_appended_candidates_leave_those_of_the_table_as_they_are(name, per_query):
    before = table(per_query=per_query)
    log_weight = before.log_weight.clone()
    log_weight[0, 2] = -1.5
    before = replace(before, log_weight=log_weight)
    after = lived(make(name, "append"))(before, clock(11))
    assert_close(after.similarity[:, :9], before.similarity)
    assert_close(after.log_weight[:, :9], before.log_weight)
    assert torch.equal(after.key_id[..., :9], before.key_id.expand_as(after.key_id[..., :9]))
    assert after.kept[:, 9:].any(dim=1).all()
    assert after.keys.ndim == (3 if per_query else 2)


@pytest.mark.parametrize("name", SOURCES)
def test_shared_and_per_query_tables_get_the_same_candidates(name):
    stage = lived(make(name, "append"))
    shared, own = stage(table(), clock(11)), stage(table(per_query=True), clock(11))
    assert [row[-4:] for row in candidates(shared)] == [row[-4:] for row in candidates(own)]
    pairs = [sorted(t.log_weight[:, 9:][t.kept[:, 9:]].tolist()) for t in (shared, own)]
    assert pairs[0] == pytest.approx(pairs[1])


@pytest.mark.parametrize("name", SOURCES)
def test_synthetic_columns_stay_last(name):
    before = table().appended(torch.full((6, 2), 0.25))
    after = lived(make(name, "append"))(before, clock(11))
    assert after.n_keys == after.similarity.shape[1] - 2
    assert (after.similarity[:, -2:] == 0.25).all()
    assert (after.key_id[..., -2:] == -1).all()


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_step_takes_the_same_candidates_and_looking_changes_nothing(name):
    stage = lived(make(name))
    state = {key: value.clone() for key, value in stage.state_dict().items()}
    first, again = stage(table(), clock(11)), stage(table(), clock(11))
    assert candidates(first) == candidates(again)
    assert all(torch.equal(value, state[key]) for key, value in stage.state_dict().items())
    if name not in ("GuidedWalk", "ScoreHistory"):  # these two draw nothing once there are lists
        assert candidates(stage(table(), clock(12))) != candidates(first)


@pytest.mark.parametrize("name", SOURCES)
def test_two_ranks_that_are_told_the_same_remember_the_same(name):
    mine, other = lived(make(name)), lived(make(name), rank=1)
    for key, value in mine.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("begun", [True, False])
def test_what_is_remembered_is_restored_bit_for_bit_and_goes_on_alike(name, begun):
    straight = lived(lived(make(name), 7), 5, start=7)
    restored = make(name, begun=begun)
    restored.load_state_dict({key: value.clone() for key, value in lived(make(name), 7).state_dict().items()})
    restored = lived(restored, 5, start=7)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, restored.state_dict()[key]), key
    assert candidates(straight(table(), clock(12))) == candidates(restored(table(), clock(12)))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bfloat16_memories_and_float64_queries_keep_their_precision(name, dtype):
    from contrastneg.negatives import Bank

    stage = lived(make(name, bank=Bank(dtype="bfloat16")))
    assert stage.memory.keys.dtype == torch.bfloat16
    after = stage(table(dtype=dtype), clock(11))
    assert after.similarity.dtype == after.log_weight.dtype == dtype
    assert after.kept.any(dim=1).all()


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_losses_and_gradients_are_finite_and_reach_the_query_through_the_similarity(name, temperature):
    from contrastneg.losses import info_nce

    before = table(query_grad=True)
    after = lived(make(name))(before, clock(11))
    info_nce(after.positive_similarity, after.similarity, after.log_weight, temperature=temperature).sum().backward()
    assert before.query.grad.isfinite().all()
    assert not after.log_weight.requires_grad
    assert not after.keys.requires_grad


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_needs_images_behind_keys(name):
    from contrastneg.negatives import check_pipeline

    check_pipeline([make(name)], {"id", "queue"})
    with pytest.raises(ValueError, match=f"{name} needs the image behind each candidate"):
        check_pipeline([make(name)], {"queue"})


@pytest.mark.parametrize("name", SOURCES)
def test_settings_survive_a_checkpoint_of_plain_values(name):
    from contrastneg.config import plain

    settings = plain(make(name, "append"))
    assert settings["class_path"] == name
    assert settings["init_args"]["combine"] == "append"
    assert settings["init_args"]["bank"] == {"momentum": 0.5, "dtype": "float32", "fill": False}
    assert "memory" not in settings["init_args"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("MemoryBank", {"count": 0}, "MemoryBank.count is 0: give a number of at least 1"),
        ("MinedNeighbours", {"uniform": -1}, "MinedNeighbours.uniform is -1: give a number of at least 0"),
        ("GraphWalk", {"follow": 1.5}, "GraphWalk.follow is 1.5"),
        ("PageRankBand", {"skip": 10, "end": 5}, "PageRankBand.end is 5"),
        ("GuidedWalk", {"count": 9, "pool": 4}, "GuidedWalk.count is 9"),
        ("HardCache", {"temperature": 0.0}, "HardCache.temperature is 0.0"),
        ("ScoreHistory", {"history": 1}, "ScoreHistory.history is 1: give a number from 2 to 255"),
        ("MetropolisChain", {"chains": 0}, "MetropolisChain.chains is 0"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make(name, **settings)


# the memory itself


def test_rows_are_running_means_of_unit_length_and_the_first_key_as_it_is():
    from contrastneg.negatives import Bank

    stage = make("MemoryBank", bank=Bank(momentum=0.75))
    first, second = units(3, seed=1), units(3, seed=2)
    ids = torch.tensor([5, 2, 9])
    stage.update(first, ids, clock())
    assert torch.equal(stage.memory.keys[ids], first)
    stage.update(second, ids, clock(1))
    assert_close(stage.memory.keys[ids], normalize(0.75 * first + 0.25 * second, dim=1))
    assert stage.memory.filled.nonzero()[:, 0].tolist() == [2, 5, 9]
    assert sorted(stage.memory.order[:3].tolist()) == [2, 5, 9]
    assert (stage.memory.order[3:] == -1).all()


def test_of_several_keys_of_an_image_in_one_step_the_last_is_written():
    stage = make("MemoryBank")
    keys = units(4)
    stage.update(keys, torch.tensor([1, 8, 1, 8]), clock())
    assert torch.equal(stage.memory.keys[[1, 8]], keys[2:])


def test_momentum_may_follow_a_schedule():
    from contrastneg.negatives import Bank
    from contrastneg.schedules import Linear

    stage = make("MemoryBank", bank=Bank(momentum=Linear(0.0, 0.8)))
    first, second = units(1, seed=1), units(1, seed=2)
    stage.update(first, torch.tensor([4]), clock())
    stage.update(second, torch.tensor([4]), clock(50))
    assert_close(stage.memory.keys[4:5], normalize(0.4 * first + 0.6 * second, dim=1))


def test_the_memory_may_be_filled_before_the_first_step_without_images_that_are_not_there():
    from contrastneg.negatives import Bank

    embeddings = units(IMAGES)
    embeddings[10:20] = torch.nan
    stage = make("MemoryBank", bank=Bank(fill=True), count=100)
    stage.refresh(lambda: embeddings, clock())
    assert len(stage.memory) == 30
    stage.refresh(lambda: pytest.fail("a second pass over the images"), clock(5))
    after = stage(table(), clock())
    assert sorted(after.key_id.tolist()) == [*range(10), *range(20, 40)]
    assert after.kept.sum(dim=1).tolist() == [29] * 6


# the memory bank


def test_all_remembered_images_are_candidates_alike_often_and_their_law_is_recorded():
    stage = make("MemoryBank", count=10)
    stage.update(units(25), torch.arange(10, 35), clock())
    hits = torch.zeros(IMAGES)
    for step in range(600):
        after = stage(table(), clock(step))
        hits += torch.zeros(IMAGES).index_add_(0, after.key_id, torch.ones(10))
        assert_close(after.log_prob, torch.full((6, 10), math.log(10 / 25)))
    assert (hits[:10] == 0).all()
    expected = 600 * 10 / 25
    chi_square = ((hits[10:35] - expected) ** 2 / expected).sum() / (1 - 10 / 25)
    assert chi_square < 51.2  # 0.1 % of samples with 24 degrees of freedom exceed it


def test_preserved_mass_stands_for_all_remembered_images():
    stage = make("MemoryBank", count=10, mass="preserve")
    stage.update(units(25), torch.arange(10, 35), clock())
    assert_close(stage(table(), clock()).log_weight.exp().sum(dim=1), torch.full((6,), 25.0))
    assert make("MemoryBank").gives == {"log_prob"}
    assert make("MemoryBank", "append").gives == set()


def test_the_law_of_appended_images_is_known_and_that_of_the_queue_not():
    stage = make("MemoryBank", "append", count=10)
    stage.update(units(25), torch.arange(10, 35), clock())
    after = stage(table(), clock())
    assert after.log_prob[:, :9].isnan().all()
    assert_close(after.log_prob[:, 9:][after.kept[:, 9:]].exp(), torch.full((60,), 0.4))


def test_more_than_are_remembered_gives_all_once():
    stage = make("MemoryBank", count=1000)
    stage.update(units(8), torch.arange(8), clock())
    after = stage(table(), clock())
    assert sorted(after.key_id.tolist()) == list(range(8))
    assert candidates(after)[2] == [0, 1, 3, 4, 5, 6, 7]


# mined neighbours


def test_mined_lists_are_the_ranks_asked_for_of_an_exhaustive_search():
    stage = make("MinedNeighbours", size=4, count=4, uniform=0, skip=2)
    embeddings = units(IMAGES, seed=7, dtype=torch.float64)
    stage.refresh(lambda: embeddings.float(), clock())
    cosine = (embeddings @ embeddings.T).fill_diagonal_(-2)
    ranks = cosine.argsort(dim=1, descending=True)[:, 2:6]
    after = stage(table(), clock())
    assert candidates(after) == [sorted(row.tolist()) for row in ranks[:6]]


def test_lists_are_renewed_every_few_epochs_only_and_not_before_the_start():
    passes = []

    def embeddings():
        passes.append(1)
        return units(IMAGES, seed=len(passes))

    stage = make("MinedNeighbours", every=3, start=2)
    epochs = []
    for epoch in range(9):
        stage.refresh(embeddings, clock(5 * epoch))
        epochs.append(len(passes))
    assert epochs == [0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_before_the_first_search_all_candidates_are_uniform():
    stage = lived(make("MinedNeighbours", start=9, size=8, count=2, uniform=1))
    hits = torch.zeros(IMAGES)
    for step in range(300):
        after = stage(table(), clock(step))
        assert after.kept.sum(dim=1).max() <= 3
        hits += after.key_id[after.kept].bincount(minlength=IMAGES)
    expected = hits[6:].mean()  # images 0 to 5 are the queries'
    assert expected > 300 * 6 * 3 / 40 * 0.9
    assert ((hits[6:] - expected) ** 2 / expected).sum() < 63.9  # 0.1 % of samples with 33 degrees of freedom exceed it


def test_half_the_candidates_may_be_uniform():
    stage = make("MinedNeighbours", size=4, count=4, uniform=4)
    stage.refresh(lambda: units(IMAGES, seed=7), clock())
    near = stage.graph.neighbours[:6].tolist()
    for row, listed in zip(candidates(stage(table(), clock())), near, strict=True):
        assert set(listed) <= set(row)
        assert 4 < len(row) <= 8


@pytest.mark.parametrize("name", ["MemoryBank", "HardCache", "GraphWalk"])
def test_a_missing_image_is_never_a_candidate(name):
    stage = make(name)
    embeddings = units(IMAGES)
    embeddings[20:] = torch.nan
    stage.memory.fill(embeddings)
    stage.refresh(lambda: embeddings, clock())
    for step in range(4):
        stage.update(units(4), torch.arange(4), clock(step))
        assert all(max(row) < 20 for row in candidates(stage(table(), clock(step))))
