"""The table of negatives, and the stages that edit it."""

from contrastneg.negatives.adversarial import AdversarialShift
from contrastneg.negatives.core import Clock, Facts, Negatives, Stage, StageWithState
from contrastneg.negatives.generate import GeneratedNegatives
from contrastneg.negatives.hops import HopMix
from contrastneg.negatives.learned import AdversarialBank
from contrastneg.negatives.pipeline import Pipeline, Record, check_pipeline, run_stages
from contrastneg.negatives.policy import BestResponse, LearnedPolicy
from contrastneg.negatives.select import UniformSubset
from contrastneg.negatives.synco import SynCo
from contrastneg.negatives.synthesize import MoCHi, PositiveMix

__all__ = [
    "AdversarialBank",
    "AdversarialShift",
    "BestResponse",
    "Clock",
    "Facts",
    "GeneratedNegatives",
    "HopMix",
    "LearnedPolicy",
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
