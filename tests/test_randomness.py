"""Seeds are functions of their parts, the same everywhere."""

import torch


def test_a_seed_is_a_fixed_function_of_its_parts():
    from contrastneg.randomness import derive_seed

    assert derive_seed(0, "views", 3) == derive_seed(0, "views", 3) == 2499786658475995058
    assert len({derive_seed(0, "views", 3), derive_seed(0, "views", 4), derive_seed(0, "crop", 3)}) == 3
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert 0 <= derive_seed("x") < 2**63


def test_generators_of_equal_parts_draw_alike_and_leave_the_global_one_alone():
    from contrastneg.randomness import generator

    before = torch.get_rng_state()
    one, other = (torch.rand(3, generator=generator(7, "x")) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())
