"""The public names of the package."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_autocast_is_never_that_of_one_kind_of_device():
    import contrastneg

    for path in sorted(Path(contrastneg.__file__).parent.rglob("*.py")):
        for call in re.findall(r"autocast\(\s*([^,)]+)", path.read_text()):
            assert call.endswith("device.type"), f"{path.name}: autocast({call}"
        assert "torch.cuda.amp" not in path.read_text()


def test_scripts_that_train_may_be_imported_by_processes_that_they_spawn():
    for path in (Path(__file__).resolve().parents[1] / "scripts").glob("*.py"):
        body = ast.parse(path.read_text()).body
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Expr, ast.If)
        assert all(isinstance(statement, kinds) for statement in body), path.name
        guards = [ast.unparse(statement.test) for statement in body if isinstance(statement, ast.If)]
        assert guards == ["__name__ == '__main__'"], path.name
        assert all(isinstance(s.value, ast.Constant) for s in body if isinstance(s, ast.Expr)), path.name


def test_every_public_name_can_be_imported_listed_and_is_declared_for_type_checkers():
    import contrastneg

    declared = Path(contrastneg.__file__).read_text().partition("_HOMES")[0]
    for name, home in contrastneg._HOMES.items():
        assert getattr(contrastneg, name) is getattr(importlib.import_module(f"contrastneg.{home}"), name)
        assert name in dir(contrastneg)
        assert f" import {name} as {name}\n" in declared, name
    assert {"Batches", "GraphWalkBatches", "ShuffledBatches"} <= set(contrastneg._HOMES)
    for name in ("losses", "negatives", "objectives"):
        assert getattr(contrastneg, name) is importlib.import_module(f"contrastneg.{name}")
        assert name in dir(contrastneg)
        assert f"from contrastneg import {name} as {name}\n" in declared
    with pytest.raises(AttributeError, match="no attribute 'Moco'"):
        _ = contrastneg.Moco


def test_stages_and_losses_are_reachable_from_the_package_alone_which_imports_no_torch_before():
    code = """
import sys
import contrastneg as cn
assert "torch" not in sys.modules
assert cn.losses.info_nce and cn.negatives.SameCluster and cn.objectives.InfoNCE
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_only_the_verb_that_analyzes_loads_the_measures_and_pretraining_no_pandas():
    code = """
import sys
import contrastneg.options
import contrastneg.pretrain
from contrastneg.commandline import parse_pretrain
parse_pretrain(["shapes"])
assert "pandas" not in sys.modules
contrastneg.options.parse_evaluate(["run"])
assert not [name for name in sys.modules if name.startswith("contrastneg.analy")]
assert contrastneg.options.parse_analyze(["run"]).asked
assert "contrastneg.analysis" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
