"""The command line of an analysis."""

import re
from pathlib import Path

import pytest


def parsed(*arguments):
    from contrastneg.options import parse_analyze

    return parse_analyze(list(arguments))


def test_encoder_and_data_may_stand_first_and_sections_are_written_with_commas():
    settings = parsed("run", "data", "--sections", "detectors,hardness", "--limit-images", "100", "--random-init")
    assert (settings.encoder, settings.data, settings.limit_images) == ("run", "data", 100)
    assert settings.random_init
    assert settings.asked == ("hardness", "detectors")  # in the order of the page


def test_several_files_of_samplers_are_written_with_commas():
    assert parsed("run", "--samplers", "a.yaml,b c.yaml").samplers == (Path("a.yaml"), Path("b c.yaml"))
    assert parsed("run").samplers == ()


def test_all_means_every_section():
    from contrastneg.analyze.sections import SECTIONS

    assert parsed("run").asked == parsed("run", "--sections", "all").asked == tuple(SECTIONS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no encoder: name a run folder"),
        (["run", "--sections", "hardnes"], "sections holds 'hardnes': choose from hardness, gradient"),
        (["run", "--temperature", "0"], "temperature is 0.0: give a number above 0"),
        (["run", "--queries", "0"], "queries is 0"),
        (["run", "--clusters", "1"], "clusters is 1"),
        (["run", "--query", "3"], "query"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        parsed(*arguments)


def test_a_second_run_is_answered_with_the_option_that_takes_it(tmp_path):
    (tmp_path / "config.yaml").write_text("data: shapes\n")
    assert parsed("run", str(tmp_path)).data == str(tmp_path)  # any folder of pictures may hold one
    (tmp_path / "encoder.safetensors").touch()
    words = f"{tmp_path} is a run, not a set of images: contrastneg analyze run --checkpoints {tmp_path} measures both"
    with pytest.raises(ValueError, match=re.escape(words)):
        parsed("run", str(tmp_path))
    assert parsed("run", "--checkpoints", str(tmp_path)).checkpoints == (str(tmp_path),)


def test_the_help_of_the_verb_lists_the_sections(capsys):
    from contrastneg.__main__ import main
    from contrastneg.analyze.sections import SECTIONS

    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(name in told for name in SECTIONS)


def test_a_blank_in_a_list_of_names_is_answered_with_the_comma():
    with pytest.raises(ValueError, match="'gradient' is a word too many.*with commas between"):
        parsed("some-run", "--sections", "hardness", "gradient")


def test_both_layers_are_asked_for_only_with_the_section_that_compares_them():
    assert parsed("some-run", "--layer", "both").layer == "both"
    assert parsed("some-run", "--layer", "both", "--sections", "layers,gradient").layer == "both"
    with pytest.raises(ValueError, match="layer is both but sections has no layers: add it, or name one layer"):
        parsed("some-run", "--layer", "both", "--sections", "gradient")
