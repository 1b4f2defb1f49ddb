"""Every number that is set has a range, and what is outside it is refused under the key that the user wrote."""

import dataclasses
import inspect
import math
import typing
from pathlib import Path

import pytest

from contrastneg import negatives, objectives
from contrastneg.checks import WrongSetting, check_numbers
from contrastneg.data.views import Augment
from contrastneg.encoders import Backbone, Head
from contrastneg.negatives import Bank, Edges, HardnessBand, Popularity, Stage, Tier
from contrastneg.objectives import Objective
from contrastneg.optim import Optimizer
from contrastneg.schedules import Linear, Schedule, Step

REQUIRED = {"MetadataTiers": {"tiers": [Tier("a")]}, "ColumnSize": {"column": "a"}, "Tier": {"column": "a"}}
WITHOUT_LEAST = {  # any finite number
    ("BinaryCrossEntropy", "bias"),
    ("Edges", "power"),
    ("GaussianWeight", "center"),
    ("MetropolisChain", "exponent"),
    ("PopularSubset", "exponent"),
    ("PopularityWeight", "exponent"),
    ("ScoreHistory", "alpha"),
    ("Sigmoid", "bias"),
    ("SoftmaxSubset", "beta"),
}


def kinds():
    public = [getattr(module, name) for module in (negatives, objectives) for name in module.__all__]
    found = [thing for thing in public if inspect.isclass(thing) and issubclass(thing, (Stage, Popularity, Objective))]
    return [
        Augment,
        Backbone,
        Bank,
        Edges,
        Head,
        Optimizer,
        Tier,
        *(kind for kind in found if not inspect.isabstract(kind) and kind is not Popularity),
    ]


def numbers(kind):
    """Settings of a class that are numbers, and whether each may be a schedule."""
    for field in dataclasses.fields(kind):
        choices = typing.get_args(field.type) or (field.type,)
        if field.init and typing.get_origin(field.type) is not tuple and {int, float} & set(choices):
            yield field.name, Schedule in choices, float in choices


CASES = [(kind, *number) for kind in kinds() for number in numbers(kind)]


@pytest.mark.parametrize(
    ("kind", "name", "scheduled", "real"), CASES, ids=[f"{kind.__name__}.{name}" for kind, name, *_ in CASES]
)
def test_no_number_may_be_nan_or_endless_or_far_below_zero_alone_or_at_an_end_of_a_schedule(
    kind, name, scheduled, real
):
    wrong = [math.nan] if real else []
    if (kind.__name__, name) not in WITHOUT_LEAST:
        wrong.append(-(10**6))
    if real and (kind, name) != (Tier, "within"):
        wrong.append(math.inf)
    if scheduled:
        start = 1.0
        wrong += [Linear(start, number) for number in wrong if math.isfinite(number)] + [Linear(start, math.nan)]
    assert wrong
    for number in wrong:
        with pytest.raises(WrongSetting, match=rf"^{kind.__name__}\.\w+ is .*: .+$") as refusal:
            kind(**REQUIRED.get(kind.__name__, {}) | {name: number})
        assert refusal.value.name == name
        assert "\n" not in str(refusal.value)


def of_python(kind, **settings):
    """What a class answers when it is made in Python with these settings."""
    with pytest.raises(WrongSetting) as refusal:
        kind(**REQUIRED.get(kind.__name__, {}) | settings)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_a_mistyped_choice_and_what_is_no_number_are_refused_by_every_class_when_it_is_made(kind):
    for field in (field for field in dataclasses.fields(kind) if field.init):
        name, choices = f"{kind.__name__}.{field.name}", typing.get_args(field.type)
        if typing.get_origin(field.type) is typing.Literal:
            for choice in choices:
                wrong = choice[:-2] + choice[-1]
                assert of_python(kind, **{field.name: wrong}).startswith(f"{name} is {wrong!r}: did you mean ")
            assert of_python(kind, **{field.name: "zzz"}) == f"{name} is 'zzz': choose from {', '.join(choices)}"
    for name, scheduled, real in numbers(kind):
        kinds_of_it = typing.get_args({field.name: field.type for field in dataclasses.fields(kind)}[name])
        for wrong in ("'a'", *(() if type(None) in kinds_of_it else ("None",))):
            said = of_python(kind, **{name: "a" if wrong == "'a'" else None})
            number = "a number" if real else "a whole number"
            assert said.startswith(f"{kind.__name__}.{name} is {wrong}: give {number}"), said
            assert ("a schedule" in said) == scheduled


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("SameCluster", {"action": "atract"}, "SameCluster.action is 'atract': did you mean attract?"),
        ("SameCluster", {"clusters": 500}, "SameCluster.clusters is 500: give a list"),
        ("SameCluster", {"clusters": ["a"]}, "SameCluster.clusters is of type list: give a list"),
        ("UniformSubset", {"count": 2.5}, "UniformSubset.count is 2.5: give a whole number or a schedule"),
        ("UniformSubset", {"count": True}, "UniformSubset.count is True: give a whole number or a schedule"),
        ("HardnessBand", {"outside": "false"}, "HardnessBand.outside is 'false': give true or false"),
        ("PopularSubset", {"popularity": "ClusterSize"}, "PopularSubset.popularity is 'ClusterSize': give a Popularity"),
        ("PopularSubset", {"popularity": negatives.ClusterSize},
         "PopularSubset.popularity is the class ClusterSize itself: give an object, ClusterSize(...)"),
        ("MemoryBank", {"bank": None}, "MemoryBank.bank is None: give a Bank"),
        ("MetadataTiers", {"tiers": ["a"]}, "MetadataTiers.tiers is of type list: give a list"),
        ("Backbone", {"name": None}, "Backbone.name is None: give text"),
        ("Backbone", {"pretrained": "no"}, "Backbone.pretrained is 'no': give true or false"),
        ("Optimizer", {"course": Linear}, "Optimizer.course is the class Linear itself: give an object, Linear(...)"),
        ("Optimizer", {"betas": (0.9, 0.99, 0.999)}, "Optimizer.betas is of type tuple: give a list of 2 numbers"),
        ("Augment", {"crop_scale": 0.2}, "Augment.crop_scale is 0.2: give a list of 2 numbers"),
        ("Augment", {"jitter": (0.4, 0.4, 0.4)}, "Augment.jitter is of type tuple: give a list of 4 numbers"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("as_users_call")
def test_what_is_of_another_kind_is_answered_with_what_to_give(kind, settings, words):
    assert of_python(next(each for each in kinds() if each.__name__ == kind), **settings) == words


@pytest.mark.usefixtures("as_users_call")
def test_a_class_of_ones_own_is_checked_before_its_own_checks_and_its_other_kinds_are_left_alone():
    @dataclasses.dataclass(frozen=True)
    class Own(Stage):
        kind: typing.ClassVar[str] = "weight"
        how: typing.Literal["up", "down"] = "up"
        where: dict | Path = Path()

        def __post_init__(self):
            assert self.how in ("up", "down")

        def __call__(self, negatives, clock):
            return negatives

    assert Own("down", where="text").where == "text"  # type: ignore[arg-type]
    assert of_python(Own, how="dwn") == "Own.how is 'dwn': did you mean down?"


@dataclasses.dataclass(frozen=True)
class Share:
    """A setting that takes schedules at their word."""

    share: typing.Any = 0.5
    count: int | typing.Any = 1

    def __post_init__(self):
        if isinstance(self.share, float) and not 0 <= self.share <= 1:
            raise ValueError(f"Share.share is {self.share}")
        if isinstance(self.count, (int, float)) and self.count < 1:
            raise ValueError(f"Share.count is {self.count}")


@dataclasses.dataclass(frozen=True)
class Owner:
    """What has it."""

    inner: Share


def test_a_schedule_is_refused_where_its_owner_would_refuse_its_number():
    check_numbers([Owner(Share(Linear(0.1, 0.9), count=Linear(1, 20)))], "x")
    for share in (
        Share(Linear(0.5, 1.5)),
        Share(Step(0.5, 3.0, (0.3,))),
        Share(count=Linear(3, 0)),
    ):
        with pytest.raises(ValueError, match=r"\(a value of its schedule, at \d+ % of the run\)"):
            check_numbers([Owner(share)], "x")


def test_two_schedules_that_cross_within_the_run_are_refused_with_the_owner_and_the_place():
    band = HardnessBand(lower=Linear(0.0, 0.5), upper=Linear(0.6, 0.2))
    with pytest.raises(
        WrongSetting, match=r"0\.332: give lower, 0\.335, or more \(a value .*, at 67 % of the run\)"
    ) as met:
        check_numbers([band], "method.stages")
    assert met.value.owner is band
    assert met.value.name == "upper"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_of_a_method_are_finite_also_in_lists_and_schedules(number):
    for setting in (number, [Linear(0.0, number)], (0.5, number)):
        with pytest.raises(ValueError, match="give a finite number"):
            check_numbers(setting, "method.x")


def refused(tmp_path, stages, loss="InfoNCE", data="shapes", queue=64):
    """What a settings file with these stages is answered with."""
    from contrastneg.commandline import parse_pretrain

    file = tmp_path / "c.yaml"
    file.write_text(
        f"method:\n  class_path: MoCo\n  init_args:\n    backbone: {{width: 0.125}}\n    queue_size: {queue}\n"
        f"    loss: {loss}\n    stages: {stages}\nviews: {{size: 16}}\n"
    )
    with pytest.raises(ValueError, match=".") as refusal:
        parse_pretrain([data, "--config", str(file)])
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


FIRST = "{class_path: UniformSubset, init_args: {count: 9}}"
LINES = {
    f"[{FIRST}, {{class_path: UniformSubset, init_args: {{count: 0}}}}]": (
        "method.stages[1].count of UniformSubset is 0: give a number of at least 1"
    ),
    "[{class_path: HardnessBand, init_args: {upper: 1.5}}]": (
        "method.stages[0].upper of HardnessBand is 1.5: give a number from 0 to 1"
    ),
    "[{class_path: HardnessBand, init_args: {lower: 0.2, upper: 0.1}}]": (
        "method.stages[0].upper of HardnessBand is 0.1: give lower, 0.2, or more"
    ),
    "[{class_path: GlobalQuantile, init_args: {share: .nan}}]": (
        "method.stages[0].share of GlobalQuantile is nan: give a number from 0 to 1"
    ),
    "[{class_path: HardestSubset, init_args: {random_share: {class_path: Linear, init_args: {start: 0, end: 2}}}}]": (
        "method.stages[0].random_share of HardestSubset is 2 at progress 1: give a number from 0 to 1"
    ),
    "[{class_path: HardnessBand, init_args: {lower: {class_path: Linear, init_args: {start: 0, end: 0.5}}, "
    "upper: {class_path: Linear, init_args: {start: 0.6, end: 0.2}}}}]": (
        "method.stages[0].upper of HardnessBand is 0.332: give lower, 0.335, or more "
        "(a value of its schedule, at 67 % of the run)"
    ),
    "[{class_path: GraphWalk, init_args: {edges: {neighbours: 0}}}]": (
        "method.stages[0].edges.neighbours of Edges is 0: give a number of at least 1"
    ),
    "[{class_path: MetadataTiers, init_args: {tiers: [{column: a}, {column: b, weight: -1}]}}]": (
        "method.stages[0].tiers[1].weight of Tier is -1.0: give a number of at least 0"
    ),
    "[{class_path: PopularSubset, init_args: {popularity: {class_path: ClusterSize, init_args: {clusters: 0}}}}]": (
        "method.stages[0].popularity.clusters of ClusterSize is 0: give a number of at least 1"
    ),
    "[{class_path: UniformSubset, init_args: {count: {class_path: Ramp, init_args: {start: 1, by: 1, parts: 0}}}}]": (
        "method.stages[0].count: Ramp.parts is 0: give at least 1"
    ),
    f"[{FIRST}, {{class_path: HardestSubset, init_args: {{count: 65}}}}]": (
        "method.stages[1].count of HardestSubset is 65 but the queue holds 64 keys: raise method.queue_size, or ask for fewer"
    ),
    "[{class_path: MoCHi, init_args: {pool: 100}}]": (
        "method.stages[0].pool of MoCHi is 100 but the queue holds 64 keys: raise method.queue_size, or ask for fewer"
    ),
    f"[{FIRST}, {{class_path: OracleSameLabel}}]": (
        "method.stages[1] OracleSameLabel (eliminate) stands after method.stages[0] UniformSubset (select): "
        "order stages as source, eliminate, select, weight, synthesize"
    ),
    "[{class_path: UniformSubsets}]": "method.stages[0].class_path: there is no class 'UniformSubsets' here: did you mean UniformSubset?",
    "[{class_path: UniformSubset, init_args: {cuont: 3}}]": (
        "method.stages[0].init_args.cuont: there is no setting 'cuont' in UniformSubset: did you mean count?"
    ),
}


@pytest.mark.parametrize("stages", LINES)
def test_wrong_stages_of_a_file_get_one_line_with_the_key_what_was_met_and_what_to_do(tmp_path, stages):
    assert refused(tmp_path, stages) == LINES[stages]


def test_a_wrong_number_of_a_loss_gets_its_key(tmp_path):
    line = refused(tmp_path, "[]", "{class_path: Debiased, init_args: {class_prior: 1.5}}")
    assert line == "method.loss.class_prior of Debiased is 1.5: give a number of at least 0 and below 1"


BEGUN = {
    "[{class_path: OracleSameLabel}]": (
        "method.stages[0]: OracleSameLabel needs labels and the images have none: leave it out, or give labelled images"
    ),
    "[{class_path: PopularSubset, init_args: {count: 4, popularity: OracleClassSize}}]": (
        "method.stages[0]: stage PopularSubset with OracleClassSize needs labels but the data has none: use ClusterSize"
    ),
    "[{class_path: RelatedSubset, init_args: {count: 4, column: plaze}}]": (
        "method.stages[0].column of RelatedSubset asks for the column 'plaze' but the columns of the images are: place"
    ),
    "[{class_path: MetadataTiers, init_args: {tiers: [{column: place}, {column: plaze}]}}]": (
        "method.stages[0].tiers[1].column of Tier asks for the column 'plaze' but the columns of the images are: place"
    ),
    "[{class_path: GraphWalk, init_args: {edges: {columns: [plaze]}}}]": (
        "method.stages[0].edges.columns of Edges asks for the column 'plaze' but the columns of the images are: place"
    ),
    "[{class_path: SameCluster, init_args: {clusters: [31]}}]": (
        "method.stages[0].clusters of SameCluster is [31] but there are 30 images: ask for fewer clusters"
    ),
    "[{class_path: MemoryBank, init_args: {count: 31}}]": (
        "method.stages[0].count of MemoryBank is 31 but there are 30 images: take more, or ask for fewer"
    ),
    "[{class_path: HardCache, init_args: {size: 31}}]": (
        "method.stages[0].size of HardCache is 31 but there are 30 images: take more, or ask for fewer"
    ),
}


@pytest.mark.parametrize("stages", BEGUN)
def test_stages_that_the_images_do_not_suit_are_refused_under_their_key_before_the_first_step(tmp_path, stages):
    import torch

    from contrastneg.commandline import parse_pretrain
    from contrastneg.negatives import Facts

    class Images:
        def facts(self, dim):
            return Facts(90, dim, columns={"place": torch.arange(90) % 3}, trained_on=30)  # as of 30 of 90

    file = tmp_path / "c.yaml"
    file.write_text(
        "method:\n  class_path: MoCo\n  init_args:\n    backbone: {width: 0.125}\n    queue_size: 64\n"
        f"    stages: {stages}\nviews: {{size: 16}}\n"
    )
    pipeline = parse_pretrain(["shapes", "--config", str(file)])[0].method.pipeline
    with pytest.raises(ValueError, match=".") as refusal:
        pipeline.begin(Images())
    assert str(refusal.value) == BEGUN[stages]
