"""The table of negatives, and the stages that edit it."""

from contrastneg.negatives.adaptive import AdaptiveCount
from contrastneg.negatives.adversarial import AdversarialShift
from contrastneg.negatives.bank import Bank
from contrastneg.negatives.caches import HardCache, ScoreHistory
from contrastneg.negatives.chains import MetropolisChain
from contrastneg.negatives.clusters import SameCluster
from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState
from contrastneg.negatives.eliminate import AbovePositive, OracleSameLabel, Redundant
from contrastneg.negatives.generate import GeneratedNegatives
from contrastneg.negatives.graph import Edges
from contrastneg.negatives.hard import (
    GapSubset,
    HardestOfRandom,
    HardestQueries,
    HardestSubset,
    HardnessBand,
    SemiHardSubset,
)
from contrastneg.negatives.hops import HopMix
from contrastneg.negatives.laws import RankSubset, SoftmaxSubset
from contrastneg.negatives.learned import AdversarialBank
from contrastneg.negatives.metadata import MetadataTiers, Tier
from contrastneg.negatives.neighbour import NeighbourPositive
from contrastneg.negatives.pipeline import Pipeline, Record, check_pipeline, run_stages
from contrastneg.negatives.policy import BestResponse, LearnedPolicy
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
from contrastneg.negatives.source import MemoryBank, MinedNeighbours
from contrastneg.negatives.support import SupportMemory, SupportViews
from contrastneg.negatives.synco import SynCo
from contrastneg.negatives.synthesize import MoCHi, PositiveMix
from contrastneg.negatives.walks import CooccurrenceRows, GraphWalk, GuidedWalk, PageRankBand
from contrastneg.negatives.weight import FixedMass, GaussianWeight, HardnessWeight, SamplingCorrection

__all__ = [
    "AbovePositive",
    "AdaptiveCount",
    "AdversarialBank",
    "AdversarialShift",
    "Bank",
    "BestResponse",
    "Clock",
    "ClusterSize",
    "ColumnSize",
    "CooccurrenceRows",
    "Edges",
    "Facts",
    "FixedMass",
    "GapSubset",
    "GaussianWeight",
    "GeneratedNegatives",
    "GlobalQuantile",
    "GraphWalk",
    "GuidedWalk",
    "HardCache",
    "HardestOfRandom",
    "HardestQueries",
    "HardestSubset",
    "HardnessBand",
    "HardnessWeight",
    "HitRate",
    "HopMix",
    "InDegree",
    "LearnedPolicy",
    "MemoryBank",
    "MetadataTiers",
    "MetropolisChain",
    "MinedNeighbours",
    "MoCHi",
    "Negatives",
    "NeighbourPositive",
    "OracleClassSize",
    "OracleSameLabel",
    "PageRankBand",
    "Pipeline",
    "PopularSubset",
    "Popularity",
    "PopularityWeight",
    "PositiveMix",
    "RankSubset",
    "Record",
    "Redundant",
    "RelatedSubset",
    "RelatedWeight",
    "SameCluster",
    "SamplingCorrection",
    "ScoreHistory",
    "SemiHardSubset",
    "SoftClusterWeight",
    "SoftmaxSubset",
    "Stage",
    "StageWithState",
    "SupportMemory",
    "SupportViews",
    "SynCo",
    "Tier",
    "UniformSubset",
    "check_pipeline",
    "run_stages",
    "score_of",
]
