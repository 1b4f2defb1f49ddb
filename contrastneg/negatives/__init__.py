"""The table of negatives, and the stages that edit it."""

from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState
from contrastneg.negatives.pipeline import Pipeline, Record, check_pipeline, run_stages
from contrastneg.negatives.select import UniformSubset
from contrastneg.negatives.synthesize import MoCHi

__all__ = [
    "Clock",
    "Facts",
    "MoCHi",
    "Negatives",
    "Pipeline",
    "Record",
    "Stage",
    "StageWithState",
    "UniformSubset",
    "check_pipeline",
    "run_stages",
]
