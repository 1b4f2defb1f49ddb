"""The table of negatives, and the stages that edit it."""

from contrastneg.negatives.bank import Bank
from contrastneg.negatives.caches import HardCache, ScoreHistory
from contrastneg.negatives.chains import MetropolisChain
from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState
from contrastneg.negatives.graph import Edges
from contrastneg.negatives.pipeline import Pipeline, Record, check_pipeline, run_stages
from contrastneg.negatives.select import UniformSubset
from contrastneg.negatives.source import MemoryBank, MinedNeighbours
from contrastneg.negatives.synthesize import MoCHi
from contrastneg.negatives.walks import CooccurrenceRows, GraphWalk, GuidedWalk, PageRankBand

__all__ = [
    "Bank",
    "Clock",
    "CooccurrenceRows",
    "Edges",
    "Facts",
    "GraphWalk",
    "GuidedWalk",
    "HardCache",
    "MemoryBank",
    "MetropolisChain",
    "MinedNeighbours",
    "MoCHi",
    "Negatives",
    "PageRankBand",
    "Pipeline",
    "Record",
    "ScoreHistory",
    "Stage",
    "StageWithState",
    "UniformSubset",
    "check_pipeline",
    "run_stages",
]
