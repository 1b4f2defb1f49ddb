"""Command lines of the small verbs: what stands first, lists by comma, and one line for what is wrong."""

import pytest


def parsed(*arguments):
    from contrastneg.options import parse_evaluate

    return parse_evaluate(arguments)


def test_encoder_and_data_may_stand_first_and_lists_are_written_with_commas():
    settings = parsed("run", "data", "--protocols", "knn,linear", "--label-shares=1,50", "--baselines", "false")
    assert (settings.encoder, settings.data) == ("run", "data")
    assert settings.asked == ("knn", "linear")
    assert settings.label_shares == (1.0, 50.0)
    assert not settings.baselines


def test_braces_of_an_address_stay_together():
    settings = parsed("run", "--transfer", "x-{a,b}.tar,cifar10")
    assert settings.transfer == ("x-{a,b}.tar", "cifar10")


def test_flags_may_stand_alone_before_another_option():
    settings = parsed("timm:resnet18", "shapes", "--random-init", "--size", "32")
    assert settings.random_init
    assert settings.size == 32


def test_all_means_every_protocol():
    from contrastneg.evaluate.settings import PROTOCOLS

    assert parsed("run", "--protocols", "all").asked == PROTOCOLS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no encoder: name a run folder"),
        (["run", "--protocols", "knn,lineer"], "lineer"),
        (["run", "--label-shares", "0"], "label_shares holds 0: give percents above 0"),
        (["run", "--limit-test-images", "0"], "limit_test_images is 0"),
        (["run", "--protocolls", "knn"], "protocols"),
        (["--compare"], "--compare takes run folders"),
        (["--compare", "a", "--seed", "1"], "--compare takes run folders"),
        (
            ["--compare", "a", "b", "--out", "nowhere/page.html"],
            "out is nowhere/page.html: give a file in a folder that is there",
        ),
    ],
)
def test_what_is_wrong_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        parsed(*arguments)


@pytest.mark.parametrize("left", ["encoder.safetensors", "checkpoints"])
def test_two_runs_without_a_word_are_told_how_they_are_compared(left, tmp_path):
    (tmp_path / "config.yaml").write_text("data: shapes\n")
    (tmp_path / left).mkdir()
    words = "is a run, not a set of images: contrastneg evaluate --compare run .* compares runs that were evaluated"
    with pytest.raises(ValueError, match=words):
        parsed("run", str(tmp_path))


def test_a_folder_of_pictures_may_hold_a_settings_file(tmp_path):
    (tmp_path / "config.yaml").write_text("source: microscope 2\n")
    assert parsed("run", str(tmp_path)).data == str(tmp_path)


def test_commas_are_told_of_only_where_a_setting_takes_several_names():
    from contrastneg.options import parse_check

    with pytest.raises(ValueError, match="'linear' is a word too many.*with commas between"):
        parsed("run", "cifar10", "--protocols", "knn", "linear")
    with pytest.raises(ValueError, match="'more' is a word too many") as refused:
        parse_check(["shapes", "more"])
    assert "commas" not in str(refused.value)
