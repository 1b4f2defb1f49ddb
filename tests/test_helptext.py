"""Help is in words: no Python types, the names a user may write, the options as they must be written."""

import pytest


def page(capsys, *arguments, verb="pretrain"):
    from contrastneg.__main__ import main

    with pytest.raises(SystemExit, match="0"):
        main([verb, *arguments])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--method.help", "MoCo"], ["--views.view2.help"]])
def test_help_shows_no_python_types(capsys, arguments):
    text = page(capsys, *arguments)
    for word in (
        "<class",
        "Union[",
        "Optional[",
        "Literal[",
        "tuple[",
        "LightningModule",
        "contrastneg.objectives",
        "``",
    ):
        assert word not in text


@pytest.mark.parametrize(
    ("setting", "names"),
    [("method", ["MoCo", "SimCLR"]), ("method.loss", ["InfoNCE"]), ("method.stages", ["MoCHi"]), ("method.momentum", ["Cosine"])],
)  # fmt: skip
def test_help_of_a_setting_without_a_name_lists_what_may_stand_there(capsys, setting, names):
    text = page(capsys, "shapes", f"--{setting}.help")
    assert f"--{setting} takes one of" in text
    assert all(f" {name} " in text for name in names)


def test_help_of_a_class_names_its_settings_as_they_are_written(capsys):
    stage = page(capsys, "shapes", "--method", "MoCo", "--method.stages.help", "MoCHi")
    assert "--method.stages+ MoCHi [--method.stages.NAME VALUE ...]" in stage
    assert "--method.stages.pool POOL" in stage
    assert "--method.loss.class_prior CLASS_PRIOR" in page(capsys, "--method.loss.help", "Debiased")
    assert "--method.predictor.layers LAYERS" in page(capsys, "--method.predictor.help")


@pytest.mark.parametrize(
    "given",
    [
        ["--method.loss.beta.help"],  # of one loss only
        ["--method.loss", "HardWeighted", "--method.loss.class_prior.help"],
        ["--method", "MoCo", "--method.loss=HardWeighted", "--method.loss.beta.help"],
    ],
)
def test_help_of_a_setting_below_a_class_is_that_of_the_class_that_has_it(capsys, given):
    text = page(capsys, "shapes", *given)
    assert "--method.loss.beta BETA Tilt towards hard candidates" in text


def test_help_says_which_numbers_may_be_schedules(capsys):
    text = page(capsys, "--method.loss.help", "HardWeighted")
    assert "a number or a schedule; default: 1" in text
    assert (
        "a number or a schedule" not in page(capsys, "--method.loss.help", "SogCLR").partition("--method.loss.gamma")[0]
    )


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [("pretrain", ["--help"]), ("pretrain", ["--method.help", "MoCo"]), ("evaluate", ["--help"]), ("evaluate", ["--backbone.help"])],
)  # fmt: skip
def test_help_shows_nothing_that_only_the_parser_knows(capsys, verb, arguments):
    text = page(capsys, *arguments, verb=verb)
    for words in ("CLASS_PATH_OR_NAME", "Path to a configuration file", "Linked arguments", "flags customizes", "Help for --",
                  "type: ", "default: False", "a list of numbers; default: [knn"):  # fmt: skip
        assert words not in text


def test_help_of_a_setting_that_has_a_page_of_its_own_names_it(capsys):
    text = page(capsys, "--method.help", "MoCo")
    assert "--method.predictor.help lists its settings" in text
    assert "UnMix; --method.mixing.help NAME tells of each" in text
    assert "default: 0.999; --method.momentum.help lists schedules" in text
    of_run = page(capsys, "--help")
    assert "--print_config Print the settings that result" in of_run
    assert "default: [0.485, 0.456, 0.406]" in of_run  # as it must be written
    assert "usage: contrastneg evaluate ENCODER [--backbone.NAME VALUE ...]" in page(
        capsys, "--backbone.help", verb="evaluate"
    )
