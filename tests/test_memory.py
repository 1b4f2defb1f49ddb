"""How much memory a process may have: the machine's, or what its container is limited to."""

import pytest

from contrastneg.device import Device
from contrastneg.memory import control_group_limits, memory_of

GIB = 2**30


def written(folder, name, limit):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{limit}\n")


@pytest.mark.parametrize(
    ("member", "limits", "found"),
    [
        ("0::/\n", {"memory.max": 2 * GIB}, [2 * GIB]),  # the container's own group is mounted as the root
        ("0::/a/b\n", {"a/memory.max": GIB, "a/b/memory.max": "max"}, [GIB]),
        ("4:memory:/docker/x\n3:cpu:/\n", {"memory/memory.limit_in_bytes": GIB}, [GIB]),
        ("4:cpu,memory:/x\n", {"memory/x/memory.limit_in_bytes": 3, "memory/memory.limit_in_bytes": 9}, [3, 9]),
        ("4:cpu:/x\n0::/x\n", {}, []),
        (None, {}, []),
    ],
)
def test_limits_of_a_container_are_those_of_its_group_and_of_all_above_it(tmp_path, member, limits, found):
    for name, limit in limits.items():
        place = tmp_path / "groups" / name
        written(place.parent, place.name, limit)
    if member is not None:
        (tmp_path / "member").write_text(member)
    assert control_group_limits(tmp_path / "member", tmp_path / "groups") == found


def test_processes_share_the_smallest_of_machine_and_container(monkeypatch):
    from contrastneg import memory

    monkeypatch.setattr(memory, "control_group_limits", list)
    machine = memory_of(Device("cpu", 1, 1, "float32", []))
    assert machine is not None
    monkeypatch.setattr(memory, "control_group_limits", lambda: [machine // 2, 10 * machine])
    assert memory_of(Device("cpu", 2, 1, "float32", [])) == machine // 2 // 2
