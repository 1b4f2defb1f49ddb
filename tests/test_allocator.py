"""The allocator setting is taken where there is glibc, and said to be absent elsewhere."""

import platform


def test_the_setting_is_taken_on_glibc():
    from contrastneg.allocator import keep_freed_memory

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc" and platform.system() == "Linux")


def test_other_systems_are_left_alone(monkeypatch):
    from contrastneg import allocator

    monkeypatch.setattr(allocator.platform, "system", lambda: "Darwin")
    assert allocator.keep_freed_memory() is False
