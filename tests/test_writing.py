"""Files are whole or absent, with the permissions of new files; names are shown without control characters."""

import os

import pytest


def test_a_file_has_the_permissions_of_new_files_whatever_its_writer_chose(tmp_path):
    from contrastneg.writing import whole_file

    path = tmp_path / "x"
    before = os.umask(0o027)
    try:
        with whole_file(path) as partial:
            partial.unlink()
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path):
    from contrastneg.writing import whole_file

    path = tmp_path / "x"
    path.write_text("earlier")
    with pytest.raises(RuntimeError), whole_file(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_control_characters_in_names_are_shown_as_escapes(capsys, tmp_path):
    from contrastneg.__main__ import main
    from contrastneg.console import shown
    from contrastneg.writing import printable

    assert printable("a\x1b[31mb\udcff é") == "a\\x1b[31mb\\udcff é"
    assert main(["check", str(tmp_path / "\x1b[31mred")]) == 2
    assert "\x1b" not in capsys.readouterr().err
    assert shown("[red]\x07") == "\\[red]\\x07"
