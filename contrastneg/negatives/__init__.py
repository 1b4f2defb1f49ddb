"""The table of negatives, and the stages that edit it."""

from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState
from contrastneg.negatives.pipeline import Pipeline, Record, check_pipeline, run_stages
from contrastneg.negatives.select import UniformSubset
from contrastneg.negatives.synco import SynCo
from contrastneg.negatives.synthesize import MoCHi, PositiveMix

__all__ = [
    "Clock",
    "Facts",
    "MoCHi",
    "Negatives",
    "Pipeline",
    "PositiveMix",
    "Record",
    "Stage",
    "StageWithState",
    "SynCo",
    "UniformSubset",
    "check_pipeline",
    "run_stages",
]
