"""Sources that walk: which images they reach, with what weight and law."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

IMAGES, DIM = 24, 5


def clock(step=0, epoch=0.0):
    from contrastneg.negatives import Clock

    return Clock(step, 100, epoch, 0)


def units(rows, seed=0):
    return normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def on_graph(stage, adjacency):
    """The stage with all images remembered and this graph."""
    from contrastneg.negatives import Facts

    stage.begin(Facts(len(adjacency), DIM))
    stage.memory.fill(units(len(adjacency), seed=9))
    degree = int((adjacency > 0).sum(dim=1).max())
    weight, neighbours = adjacency.sort(dim=1, descending=True, stable=True)
    stage.graph.put(neighbours[:, :degree].masked_fill(weight[:, :degree] == 0, -1), weight[:, :degree])
    return stage


def ring(nodes=IMAGES):
    """Each image has the two beside it as neighbours."""
    place = torch.arange(nodes)
    adjacency = torch.zeros(nodes, nodes)
    adjacency[place, (place + 1) % nodes] = adjacency[place, (place - 1) % nodes] = 1.0
    return adjacency


def table(query_id, seed=1, keys=0):
    from contrastneg.negatives import Negatives

    rows = len(query_id)
    return Negatives.of(
        units(rows, seed),
        units(rows, seed + 1),
        units(keys, seed + 2),
        query_id=torch.as_tensor(query_id),
        key_id=torch.arange(keys),
    )


def candidates(negatives):
    ids = negatives.key_id.expand(len(negatives.query), -1)
    return [set(row[kept].tolist()) for row, kept in zip(ids, negatives.kept, strict=True)]


def test_a_graph_walk_takes_images_from_the_least_number_of_edges_to_the_last():
    from contrastneg.negatives import GraphWalk

    stage = on_graph(GraphWalk(walks=400, steps=4, follow=1.0, hop_min=2), ring())
    (found,) = candidates(stage(table([10]), clock()))
    assert found == {8, 12, 6, 14, 9, 11, 7, 13}  # steps 2 and 4 at even, step 3 at odd distances
    stage = on_graph(GraphWalk(walks=400, steps=2, follow=1.0, hop_min=2), ring())
    assert candidates(stage(table([10]), clock())) == [{8, 12}]  # back at the start does not count
    stage = on_graph(GraphWalk(walks=50, steps=4, follow=0.0), ring())
    after = stage(table([10]), clock())
    assert after.kept.sum() > 10  # walks that never leave: uniform candidates


def test_visits_weigh_relative_to_the_other_candidates():
    from contrastneg.negatives import GraphWalk

    weight = torch.zeros(4, 4)
    weight[0, 1], weight[0, 2], weight[0, 3] = 6.0, 3.0, 1.0
    weight[1:, 0] = 1.0
    stage = on_graph(GraphWalk(walks=20000, steps=1, follow=1.0, hop_min=1, weigh="visits"), weight)
    after = stage(table([0]), clock())
    share = {int(i): w for i, w in zip(after.key_id[0], after.log_weight[0].exp(), strict=True) if i >= 0}
    assert share[1] == pytest.approx(1.8, abs=0.03)
    assert share[2] == pytest.approx(0.9, abs=0.03)
    assert share[3] == pytest.approx(0.3, abs=0.03)
    assert sum(share.values()) == pytest.approx(3, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_cooccurrence_draws_follow_the_row_of_the_matrix_power_and_tell_their_law(steps):
    from contrastneg.negatives import CooccurrenceRows

    draw = torch.Generator().manual_seed(0)
    weight = torch.rand(10, 10, generator=draw) * (torch.rand(10, 10, generator=draw) < 0.5)
    weight.fill_diagonal_(0)
    law = torch.linalg.matrix_power(weight.double() / weight.double().sum(dim=1, keepdim=True), steps)
    stage = on_graph(CooccurrenceRows(count=3, steps=steps, combine="replace"), weight)
    hits = torch.zeros(10, 10)
    for step in range(300):
        after = stage(table(list(range(10))), clock(step))
        hits[after.kept.nonzero()[:, 0], after.key_id[after.kept]] += 1
    instead = law.diagonal()[:, None] ** 3 * (1 - (1 - 1 / 10) ** 3)  # all three draws led home: three uniform ones
    inclusion = 1 - (1 - law) ** 3 + instead
    off_diagonal = ~torch.eye(10, dtype=torch.bool)
    assert (hits / 300 - inclusion)[off_diagonal].abs().max() < 0.12  # four standard deviations
    assert hits.diagonal().sum() == 0
    row = after.kept.nonzero()[:, 0]
    expected = inclusion[row, after.key_id[after.kept]].log().to(after.log_prob.dtype)
    assert_close(after.log_prob[after.kept], expected, rtol=1e-5, atol=1e-6)


def test_isolated_images_get_uniform_candidates_with_their_law():
    from contrastneg.negatives import CooccurrenceRows

    weight = ring()
    weight[5] = 0
    after = on_graph(CooccurrenceRows(count=8, combine="replace"), weight)(table([5]), clock())
    assert after.kept.sum() > 4
    law = math.log(1 - (1 - 1 / IMAGES) ** 8)
    assert_close(after.log_prob[after.kept], torch.full((int(after.kept.sum()),), law).to(after.log_prob))
    kept_apart = on_graph(CooccurrenceRows(count=8, combine="append"), weight)(table([5], keys=4), clock())
    assert candidates(kept_apart) == [{0, 1, 2, 3}]


def test_the_law_is_given_only_where_it_is_summed():
    from contrastneg.negatives import CooccurrenceRows, Edges

    assert CooccurrenceRows(combine="replace").gives == {"log_prob"}
    assert CooccurrenceRows(combine="append").gives == set()
    assert on_graph(CooccurrenceRows(combine="append"), ring())(table([5], keys=4), clock()).log_prob is None
    long = CooccurrenceRows(combine="replace", steps=3, edges=Edges(neighbours=20))
    assert long.gives == set()
    assert long.breaks == {"iid", "log_prob"}
    assert on_graph(long, ring())(table([5]), clock()).log_prob is None


def test_cooccurrence_of_metadata_takes_images_of_the_same_place():
    from contrastneg.negatives import CooccurrenceRows, Edges, Facts

    place = torch.tensor([0, 0, 0, 1, 1, 1, -1, -1])
    stage = CooccurrenceRows(count=40, steps=1, combine="replace", edges=Edges(columns=("place",)))
    stage.begin(Facts(8, DIM, columns={"place": place}))
    stage.memory.fill(units(8))
    assert candidates(stage(table([1, 4]), clock())) == [{0, 2}, {3, 5}]
    stage.refresh(lambda: pytest.fail("metadata needs no pass over the images"), clock(epoch=5.0))


def test_a_pagerank_band_is_the_ranks_of_an_exact_solve():
    from contrastneg.negatives import PageRankBand

    weight = torch.zeros(9, 9)
    weight[torch.arange(8), torch.arange(1, 9)] = 1.0  # a path: the further, the lower the rank
    weight[8, 0] = 1.0
    settings = {"growing": False, "walks": 3000, "steps": 40, "count": 9, "combine": "replace"}
    stage = on_graph(PageRankBand(skip=2, end=5, **settings), weight)
    assert candidates(stage(table([0, 4]), clock())) == [{3, 4, 5}, {7, 8, 0}]
    shares = on_graph(PageRankBand(skip=2 / 9, end=5 / 9, **settings), weight)
    assert candidates(shares(table([0, 4]), clock())) == [{3, 4, 5}, {7, 8, 0}]


def test_the_first_epoch_has_no_hard_images_and_each_later_one_more():
    from contrastneg.negatives import PageRankBand

    stage = on_graph(PageRankBand(count=3, skip=0, end=20), ring())
    before = table([10], keys=4)
    added = [stage(before, clock(epoch=e)).kept.sum().item() - 4 for e in (0.0, 0.9, 1.0, 2.5, 3.0, 8.0, math.inf)]
    assert added == [0, 0, 1, 2, 3, 3, 3]


def test_a_guided_walk_on_a_path_ends_two_edges_away_or_less_per_round_and_never_at_home():
    from contrastneg.negatives import GuidedWalk

    for rounds in (1, 2, 3):
        stage = on_graph(GuidedWalk(rounds=rounds, combine="replace"), ring())
        for row, own in zip(candidates(stage(table([4, 10, 17]), clock())), (4, 10, 17), strict=True):
            (end,) = row
            assert end != own
            assert min((end - own) % IMAGES, (own - end) % IMAGES) <= 2 * rounds


def test_a_guided_walk_is_the_greedy_one_of_the_definition():
    from contrastneg.negatives import GuidedWalk

    draw = torch.Generator().manual_seed(5)
    weight = (torch.rand(IMAGES, IMAGES, generator=draw) < 0.3).float().fill_diagonal_(0)
    stage = on_graph(GuidedWalk(count=2, pool=4, rounds=2, combine="replace"), weight)
    negatives = table([0, 3, 8])
    keys = stage.memory.keys
    expected = []
    for q, p, own in zip(negatives.query, negatives.positive, (0, 3, 8), strict=True):
        node = own
        for _ in range(2):

            def best(i, q=q, p=p, own=own):
                near = [j for j in weight[i].nonzero()[:, 0].tolist() if j != own]
                return sorted(near, key=lambda j: -float((q + p) @ keys[j]))

            pool = best(best(node)[0])[:4]
            ends = sorted(pool, key=lambda j: -float(q @ keys[j]))[:2]
            node = ends[0]
        expected.append(set(ends))
    assert candidates(stage(negatives, clock())) == expected
