"""Which plays of a flow are made on one problem? One exploration a file; they are values, and know no model."""

from flow_dpo.explore.base import Drawing, Explore
from flow_dpo.explore.group import Group
from flow_dpo.explore.guidelines import FromGuidelines
from flow_dpo.explore.reference_path import ReferencePath
from flow_dpo.explore.search import Search
from flow_dpo.explore.siblings import Siblings
from flow_dpo.explore.trajectories import FromTrajectories
from flow_dpo.explore.vine import Vine

__all__ = [
    "Drawing",
    "Explore",
    "FromGuidelines",
    "FromTrajectories",
    "Group",
    "ReferencePath",
    "Search",
    "Siblings",
    "Vine",
]
