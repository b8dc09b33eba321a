"""Typed access to a vtkMRMLScriptedModuleNode, and its connection to widgets.

The part of Slicer's package of this name that modules use: int, float, str, bool, pathlib paths, enums, MRML
nodes, `Optional` of these and lists; `Default`, `WithinRange`, `Minimum`, `Maximum`, `Choice`, `Decimals`,
`SingleStep`. What it does not know it refuses. Values are stored in the node as Slicer stores them, so scenes
travel between the two. Parameter packs and `createGui` are left out.
"""

from .connectors import Decimals, SingleStep, createGuiConnector
from .serializers import Choice, Default, Exclude, Maximum, Minimum, Validator, WithinRange
from .wrapper import SlicerParameterNamePropertyName, isParameterNodeWrapper, parameterNodeWrapper

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Exclude",
    "Maximum",
    "Minimum",
    "SingleStep",
    "SlicerParameterNamePropertyName",
    "Validator",
    "WithinRange",
    "createGuiConnector",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]
