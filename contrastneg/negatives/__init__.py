"""The table of negatives, and the stages that edit it."""

from contrastneg.negatives.adaptive import AdaptiveCount
from contrastneg.negatives.clusters import SameCluster
from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState
from contrastneg.negatives.eliminate import AbovePositive, OracleSameLabel, Redundant
from contrastneg.negatives.hard import (
    GapSubset,
    HardestOfRandom,
    HardestQueries,
    HardestSubset,
    HardnessBand,
    SemiHardSubset,
)
from contrastneg.negatives.laws import RankSubset, SoftmaxSubset
from contrastneg.negatives.metadata import MetadataTiers, Tier
from contrastneg.negatives.pipeline import Pipeline, Record, check_pipeline, run_stages
from contrastneg.negatives.popularity import (
    ClusterSize,
    ColumnSize,
    HitRate,
    InDegree,
    OracleClassSize,
    Popularity,
    PopularityWeight,
    PopularSubset,
)
from contrastneg.negatives.quantile import GlobalQuantile
from contrastneg.negatives.related import RelatedSubset, RelatedWeight
from contrastneg.negatives.scores import score_of
from contrastneg.negatives.select import UniformSubset
from contrastneg.negatives.soft_clusters import SoftClusterWeight
from contrastneg.negatives.support import SupportMemory, SupportViews
from contrastneg.negatives.synthesize import MoCHi
from contrastneg.negatives.weight import FixedMass, GaussianWeight, HardnessWeight, SamplingCorrection

__all__ = [
    "AbovePositive",
    "AdaptiveCount",
    "Clock",
    "ClusterSize",
    "ColumnSize",
    "Facts",
    "FixedMass",
    "GapSubset",
    "GaussianWeight",
    "GlobalQuantile",
    "HardestOfRandom",
    "HardestQueries",
    "HardestSubset",
    "HardnessBand",
    "HardnessWeight",
    "HitRate",
    "InDegree",
    "MetadataTiers",
    "MoCHi",
    "Negatives",
    "OracleClassSize",
    "OracleSameLabel",
    "Pipeline",
    "PopularSubset",
    "Popularity",
    "PopularityWeight",
    "RankSubset",
    "Record",
    "Redundant",
    "RelatedSubset",
    "RelatedWeight",
    "SameCluster",
    "SamplingCorrection",
    "SemiHardSubset",
    "SoftClusterWeight",
    "SoftmaxSubset",
    "Stage",
    "StageWithState",
    "SupportMemory",
    "SupportViews",
    "Tier",
    "UniformSubset",
    "check_pipeline",
    "run_stages",
    "score_of",
]
