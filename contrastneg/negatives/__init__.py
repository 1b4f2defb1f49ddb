"""The table of negatives, and the stages that edit it."""

from contrastneg.negatives.clusters import SameCluster
from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState
from contrastneg.negatives.eliminate import AbovePositive, OracleSameLabel, Redundant
from contrastneg.negatives.metadata import MetadataTiers, Tier
from contrastneg.negatives.pipeline import Pipeline, Record, check_pipeline, run_stages
from contrastneg.negatives.quantile import GlobalQuantile
from contrastneg.negatives.select import UniformSubset
from contrastneg.negatives.support import SupportMemory, SupportViews
from contrastneg.negatives.synthesize import MoCHi

__all__ = [
    "AbovePositive",
    "Clock",
    "Facts",
    "GlobalQuantile",
    "MetadataTiers",
    "MoCHi",
    "Negatives",
    "OracleSameLabel",
    "Pipeline",
    "Record",
    "Redundant",
    "SameCluster",
    "Stage",
    "StageWithState",
    "SupportMemory",
    "SupportViews",
    "Tier",
    "UniformSubset",
    "check_pipeline",
    "run_stages",
]
