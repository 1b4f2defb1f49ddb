"""The table of negatives, and the stages that edit it."""

from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState
from contrastneg.negatives.hard import (
    GapSubset,
    HardestOfRandom,
    HardestQueries,
    HardestSubset,
    HardnessBand,
    SemiHardSubset,
)
from contrastneg.negatives.laws import RankSubset, SoftmaxSubset
from contrastneg.negatives.pipeline import Pipeline, Record, check_pipeline, run_stages
from contrastneg.negatives.scores import score_of
from contrastneg.negatives.select import UniformSubset
from contrastneg.negatives.synthesize import MoCHi
from contrastneg.negatives.weight import FixedMass, GaussianWeight, HardnessWeight, SamplingCorrection

__all__ = [
    "Clock",
    "Facts",
    "FixedMass",
    "GapSubset",
    "GaussianWeight",
    "HardestOfRandom",
    "HardestQueries",
    "HardestSubset",
    "HardnessBand",
    "HardnessWeight",
    "MoCHi",
    "Negatives",
    "Pipeline",
    "RankSubset",
    "Record",
    "SamplingCorrection",
    "SemiHardSubset",
    "SoftmaxSubset",
    "Stage",
    "StageWithState",
    "UniformSubset",
    "check_pipeline",
    "run_stages",
    "score_of",
]
