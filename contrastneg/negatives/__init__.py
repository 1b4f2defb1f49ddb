"""The table of negatives, and the stages that edit it."""

from contrastneg.negatives.core import Clock, Negatives, Stage, check_pipeline
from contrastneg.negatives.select import UniformSubset
from contrastneg.negatives.synthesize import MoCHi

__all__ = ["Clock", "MoCHi", "Negatives", "Stage", "UniformSubset", "check_pipeline"]
