"""Wrong settings are answered with the nearest name of the right kind, in words and in one line."""

import json

import pytest


def answer(*arguments):
    from contrastneg.commandline import parse_pretrain

    with pytest.raises(ValueError) as refusal:
        parse_pretrain(list(arguments))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def stages_file(tmp_path, *stages):
    file = tmp_path / "c.yaml"
    method = {"class_path": "MoCo", "init_args": {"stages": list(stages)}}
    file.write_text(json.dumps({"method": method, "views": {"size": 32}}))
    return ["shapes", "--config", str(file)]


@pytest.mark.parametrize(
    ("stage", "settings", "words"),
    [
        ("PopularSubset", {"popularity": {"class_path": "ClusterSiz"}}, "did you mean ClusterSize?"),
        ("PopularSubset", {"popularity": {"class_path": "ClusterSize", "init_args": {"clustrs": 4}}}, "did you mean clusters?"),
        ("MemoryBank", {"bank": {"momentm": 0.4}}, "in Bank: did you mean momentum?"),
        ("GraphWalk", {"edges": {"neighbors": 4}}, "in Edges: did you mean neighbours?"),
        ("MetadataTiers", {"tiers": [{"column": "a", "acton": "remove"}]}, "in Tier: did you mean action?"),
        ("MetadataTiers", {"tiers": [{"column": "a", "action": "delete"}]},
         "method.stages[0].init_args.tiers[0].action is delete: choose from remove, attract, weigh"),
        ("UniformSubset", {"count": "many"},
         "method.stages[0].init_args.count is many: give a whole number, or a schedule: choose from Cosine"),
        ("no_such_module.Stage", {}, "there is no module 'no_such_module'"),
        ("contrastneg.negatives.MoCHy", {}, "module 'contrastneg.negatives' has no class 'MoCHy': did you mean MoCHi?"),
        ("MoCHi", {"warmup_epochs": "abc"}, "method.stages[0].init_args.warmup_epochs is abc: give a number"),
        ("torch.nn.Linear", {}, "torch.nn.Linear, which is no Stage"),
        ("MetadataTiers", {}, "method.stages.tiers is missing: MetadataTiers needs it, for instance "
         "{class_path: MetadataTiers, init_args: {tiers: [{column: NAME}]}}"),
        ("MetadataTiers", {"tiers": [{"action": "remove"}]}, "tiers.column is missing: Tier needs it, for instance {column: NAME}"),
        ("MoCHi", {"pool": {"class_path": "Linear"}}, "method.stages.pool.start and method.stages.pool.end are missing: Linear needs them"),
        ("SameCluster", {"clusters": 500}, "method.stages[0].init_args.clusters is 500: give a list of whole numbers, for instance [500]"),
    ],
)  # fmt: skip
def test_a_mistake_inside_a_stage_is_answered_with_a_name_of_the_right_kind(tmp_path, stage, settings, words):
    assert words in answer(*stages_file(tmp_path, {"class_path": stage, "init_args": settings}))


UNIFORM = {"class_path": "UniformSubset"}


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ([UNIFORM, {"class_path": "Mochi"}], "[1].class_path: there is no class 'Mochi' here: did you mean MoCHi?"),
        ([UNIFORM, "Mochi"], "[1]: there is no class 'Mochi' here: did you mean MoCHi?"),
        ([{"class_path": "Banana"}],
         "[0].class_path: there is no class 'Banana' here: give a stage, `contrastneg catalogue` lists them"),
        ([UNIFORM, {"class_path": "InfoNCE"}], "[1].class_path: InfoNCE is a loss, which belongs to method.loss"),
        ([{"class_path": "contrastneg.objectives.InfoNCE"}], "[0].class_path: InfoNCE is a loss, which belongs to method.loss"),
        ([{**UNIFORM, "init_args": {"count": 4}}, {"class_path": "MoCHi", "init_args": {"pol": 5}}],
         "[1].init_args.pol: there is no setting 'pol' in MoCHi: did you mean pool?"),
        ([{**UNIFORM, "init_args": {"count": 4}}, {"class_path": "HardnessWeight", "init_args": {"count": 4}}],
         "[1].init_args.count: there is no setting 'count' in HardnessWeight: choose from beta, detach_weights, temperature"),
        ([UNIFORM, {"class_path": "MemoryBank", "init_args": {"bank": {"momentm": 0.4}}}],
         "[1].init_args.bank.momentm: there is no setting 'momentm' in Bank: did you mean momentum?"),
        ([{"class_path": "MetadataTiers", "init_args": {"tiers": [{"column": "a"}, {"colum": "a"}]}}],
         "[0].init_args.tiers[1].colum: there is no setting 'colum' in Tier: did you mean column?"),
        ([{"class_path": "PopularSubset", "init_args": {"popularity": {"class_path": "ClusterSiz"}}}],
         "[0].init_args.popularity.class_path: there is no class 'ClusterSiz' here: did you mean ClusterSize?"),
    ],
)  # fmt: skip
def test_a_wrong_name_among_the_stages_of_a_file_is_answered_with_the_key_as_it_was_written(tmp_path, stages, line):
    assert answer(*stages_file(tmp_path, *stages)) == f"method.stages{line}"


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ([{**UNIFORM, "count": 3}],
         "[0] is {class_path: UniformSubset, count: 3}: write {class_path: UniformSubset, init_args: {count: 3}}"),
        ([{**UNIFORM, "init_args": None, "count": 3}],
         "[0] is {class_path: UniformSubset, init_args: null, count: 3}: "
         "write {class_path: UniformSubset, init_args: {count: 3}}"),
        ([{**UNIFORM, "init_args": "many", "count": 3}],
         "[0] is {class_path: UniformSubset, init_args: many, count: 3}: "
         "write {class_path: UniformSubset, init_args: {count: 3}}"),
        ([UNIFORM, {}], "[1] is {}: give the name of a stage, or {class_path: NAME, init_args: {SETTING: VALUE}}"),
        ([UNIFORM, {"MoCHi": {"pool": 3}}], "[1] is {MoCHi: {pool: 3}}: write {class_path: MoCHi, init_args: {pool: 3}}"),
        ([{"init_args": {"pool": 3}}],
         "[0] is {init_args: {pool: 3}}, without class_path: write {class_path: NAME, init_args: {SETTING: VALUE}}"),
        ([UNIFORM, 5], "[1] is 5: give the name of a stage, or {class_path: NAME, init_args: {SETTING: VALUE}}"),
        ([{"class_path": "MoCHi", "init_args": [3]}], " has init_args that are no settings: write {NAME: VALUE}"),
        ([{**UNIFORM, "init_args": {"count": 8}}, {**UNIFORM, "init_args": {"count": 8.5}}],
         "[1].init_args.count is 8.5: give a whole number or a schedule"),
    ],
)  # fmt: skip
def test_a_stage_written_in_another_way_is_answered_with_the_way_to_write_it(tmp_path, stages, line):
    assert answer(*stages_file(tmp_path, *stages)) == f"method.stages{line}"


def test_what_is_no_list_of_stages_is_answered_with_a_list():
    moco = ["shapes", "--method", "MoCo", "--views.size", "32"]
    one = "{class_path: MoCHi, init_args: {pool: 3}}"
    assert answer(*moco, "--method.stages", one) == f"method.stages is {one}: give a list, for instance [{one}]"
    assert answer(*moco, "--method.stages.pool", "3") == (
        "method.stages.pool is given but no stage that has it: give --method.stages+ NAME before it"
    )


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        ("{class_path: MoCHi}", "method.loss.class_path: MoCHi is a stage, which belongs to method.stages"),
        ("MoCo", "method.loss: MoCo is a method, which belongs to method"),
        ("Banana", "method.loss: there is no class 'Banana' here: give a loss, `contrastneg catalogue` lists them"),
        ("{class_path: Debiased, init_args: {class_prio: 0.1}}",
         "method.loss.init_args.class_prio: there is no setting 'class_prio' in Debiased: did you mean class_prior?"),
    ],
)  # fmt: skip
def test_a_wrong_loss_of_a_file_is_answered_with_the_key_as_it_was_written(tmp_path, loss, line):
    (tmp_path / "c.yaml").write_text(
        f"method: {{class_path: MoCo, init_args: {{loss: {loss}}}}}\nviews: {{size: 16}}\n"
    )
    assert answer("shapes", "--config", str(tmp_path / "c.yaml")) == line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shapes", "extra"], "'extra' is a word too many"),
        (["--epochs", "3", "shapes"], "'shapes' is a word too many: settings are given as --NAME VALUE and the address"),
        (["shapes", "--zzzz", "1"], "there is no option --zzzz: contrastneg pretrain --help lists all"),
        (["shapes", "--method", "SimCLR", "--method.queue_size", "10"], "MoCo has it (choose with --method MoCo)"),
        (["shapes", "--method", "MoCo", "--method.stages", "MoCHy"], "there is no class 'MoCHy' here: did you mean MoCHi?"),
        (["shapes", "--devices", "3.5"], "devices is 3.5: give a whole number or auto"),
        (["shapes", "--clip", "nan"], "clip is nan: give a number or none"),
        (["shapes", "--method.loss"], "--method.loss stands without a value"),
        (["shapes", "--method", "--epochs", "3"], "--method stands without a value"),
        (["shapes", "--batches", "GraphWalkBatches", "--batches.restart", "abc"], "batches.restart is abc: give a number"),
        (["shapes", "--method.loss", "HardWeighted", "--method.loss.beta", "[1]"], "method.loss.beta is [1]: give a number"),
        (["shapes", "--method", "MoCo", "--method.mixing", "UnMix", "--method.mixing.box", "abc"],
         "method.mixing.box is abc: give a number"),
        (["shapes", "--method", "MoCo", "--method.adversary.step", "1"], "there is no setting 'adversary.step' in MoCo: SimCLR has it"),
        (["shapes", "--method.stages", "MetadataTiers"], "method.stages.tiers is missing: MetadataTiers needs it"),
        (["shapes", "--method.stages", "SameCluster", "--method.stages.clusters", "500"],
         "method.stages.clusters is 500: give a list of whole numbers, for instance [500]"),
        (["shapes", "--method.optimizer.betas", "1"], "method.optimizer.betas is 1: give a list of 2 numbers, for instance [0.5, 0.5]"),
        (["shapes", "--method.loss.temperature.help"], "there is no setting method.loss.temperature: --method.loss.help lists"),
        (["shapes", "--method.loss.class_prior.help"], "method.loss.class_prior is a setting of Debiased, HardWeighted: --method.loss.help "
         "Debiased tells its meaning"),
        (["--method.stages.count.help"], " more: --method.stages.help AdaptiveCount tells its meaning"),
        (["shapes", "--method.backbone", "resnet18d"], "method.backbone is resnet18d: did you mean --method.backbone.name resnet18d?"),
        (["shapes", "--method.optimizer", "adamw"], "did you mean --method.optimizer.name adamw?"),
        (["shapes", "--method.projector", "128"], "did you mean --method.projector.out 128?"),
        (["shapes", "--views", "32"], "views is 32: did you mean --views.size 32?"),
        (["shapes", "--views.view1", "5"], "views.view1 is 5: it has settings of its own, which --views.view1.help lists"),
        (["shapes", "--method.adversary", "3"], "method.adversary is 3: it has settings of its own, which"),
        (["--epochs.help"], "epochs takes a whole number: `contrastneg pretrain --help` tells its meaning"),
        (["--method.stages.help", "int"], "there is no class 'int' here"),
        (["--method.help", "MoC"], "there is no class 'MoC' here: did you mean MoCo?"),
        (["--method.losss.help"], "there is no setting method.losss"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_answered_in_words(arguments, words):
    assert words in answer(*arguments)


@pytest.mark.parametrize("kind", ["MetadataTiers", "ColumnSize", "Linear", "Step", "Ramp"])
def test_the_example_of_a_class_is_legal(kind):
    import yaml
    from jsonargparse import ArgumentParser

    from contrastneg import negatives, schedules
    from contrastneg.annotations import example
    from contrastneg.negatives import Popularity, Stage
    from contrastneg.schedules import Schedule

    named = getattr(negatives, kind, None) or getattr(schedules, kind)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--thing", type=Stage | Popularity | Schedule)
    assert type(parser.instantiate(parser.parse_object({"thing": yaml.safe_load(example(named))})).thing) is named


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: 3\nviews: [1\nseed: 4\n", "c.yaml line 3 is not YAML"),
        ("- a\n- b\n", "c.yaml holds no settings: write NAME: VALUE"),
        ("method: {clas_path: MoCo}\n", "method has 'clas_path' but no class_path"),
        ("method: {class_path: MoCo, init_args: {stages: MoCHi}}\n", "method.stages is MoCHi: give a list"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_named_with_the_line(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    assert words in answer("shapes", "--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("text", "reason"), [("def f(:", "invalid syntax"), ("import no_such_package", "No module named")]
)
def test_a_module_of_ones_own_that_fails_is_named_with_the_reason(tmp_path, monkeypatch, text, reason):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    said = answer(*stages_file(tmp_path, {"class_path": f"{name}.Mine"}))
    assert f"module '{name}', which {name}.Mine names, cannot be imported: {reason}" in said
