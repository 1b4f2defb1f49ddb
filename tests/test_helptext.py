"""Help is in words: no Python types, the names a user may write, the options as they must be written."""

import pytest


def page(capsys, *arguments):
    from contrastneg.__main__ import main

    with pytest.raises(SystemExit, match="0"):
        main(["pretrain", *arguments])
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
