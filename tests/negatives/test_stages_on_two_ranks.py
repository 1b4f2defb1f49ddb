"""What stages measure during a step: two gloo processes against one process on the joined batch."""

import pytest
import torch
import torch.distributed as dist
from processes import in_two_processes


def table(rows):
    from contrastneg.negatives import Negatives

    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    x = torch.nn.functional.normalize(x, dim=1)
    return Negatives.of(x[:8][rows], x[8:16][rows], x[16:], query_id=torch.arange(8)[rows], key_id=torch.arange(16, 40))


def states(rows):
    """What two stages know after three steps, for queries in some rows."""
    from contrastneg.negatives import AdaptiveCount, Clock, Facts, HitRate, PopularSubset

    popular = PopularSubset(popularity=HitRate(share=0.2, decay=0.5), level="entry")
    adaptive = AdaptiveCount(count=8, smallest=2, false_negatives=0.1)
    for stage in (popular, adaptive):
        stage.begin(Facts(40, 6))
        for step in range(3):
            clock = Clock(step, 10, 0.0, 0, rank=dist.get_rank() if dist.is_initialized() else 0)
            stage(table(rows), clock)
            stage.update(torch.zeros(8, 6), torch.arange(8), clock)
        stage.refresh(lambda: pytest.fail("asked for embeddings"), Clock(3, 10, 1.0, 0))
    return {**popular.state_dict(), **adaptive.state_dict()}


def recorded(rows):
    """What is recorded of a stage that finds false negatives of query 6 alone, for queries in some rows."""
    from contrastneg.negatives import Clock, Record, Stage, run_stages

    class Found(Stage):
        kind = "eliminate"

        def __call__(self, negatives, clock):
            return negatives.removed((negatives.query_id[:, None] == 6) & (torch.arange(24) < 7))

        def report(self):
            return {"state": torch.tensor(3.0)}

    record = Record(torch.arange(40) % 3)
    run_stages(table(rows), [Found()], Clock(1, 10, 0.0, 0), record)
    record("spread", table(rows).positive_similarity)
    return record.reduced()


def one_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    rows = slice(0, 5) if rank == 0 else slice(5, 8)
    torch.save({**states(rows), **recorded(rows)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_hits_counts_and_records_are_equal_on_all_ranks_and_those_of_the_joined_batch(tmp_path):
    in_two_processes(one_of_two, str(tmp_path))
    alone = {**states(slice(0, 8)), **recorded(slice(0, 8))}
    assert 0 < alone["negatives/1_Found/precision"] < 1
    assert alone["negatives/1_Found/state"] == 3
    assert alone["frequency"].any()
    assert alone["measured"]
    for rank in (0, 1):
        of_rank = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in alone.items():
            torch.testing.assert_close(of_rank[name], value, msg=f"{name} on rank {rank}")
