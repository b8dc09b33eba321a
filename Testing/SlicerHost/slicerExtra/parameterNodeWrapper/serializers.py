"""How a typed value is written into the text parameters of a scripted module node, and read back."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
import typing

import slicer


@dataclasses.dataclass
class Default:
    """Annotation: the parameter's first value."""

    value: object


class Validator:
    """Annotation: refuses values by raising ValueError."""

    def validate(self, value) -> None:
        raise NotImplementedError


@dataclasses.dataclass
class WithinRange(Validator):
    minimum: float
    maximum: float

    def validate(self, value) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


@dataclasses.dataclass
class Minimum(Validator):
    minimum: float

    def validate(self, value) -> None:
        if value < self.minimum:
            raise ValueError(f"Value must be at least {self.minimum}, is {value}")


@dataclasses.dataclass
class Maximum(Validator):
    maximum: float

    def validate(self, value) -> None:
        if value > self.maximum:
            raise ValueError(f"Value must be at most {self.maximum}, is {value}")


@dataclasses.dataclass
class Choice(Validator):
    choices: list

    def validate(self, value) -> None:
        if value not in self.choices:
            raise ValueError(f"Value is {value}, but must be one of {self.choices}")


@dataclasses.dataclass
class Exclude(Validator):
    excludedValues: list

    def validate(self, value) -> None:
        if value in self.excludedValues:
            raise ValueError(f"Value must not be {value}")


class Serializer:
    """One value under one name, as text; subclasses say how."""

    cached = True

    def __init__(self, accepted, fallback):
        self.accepted, self.fallback = accepted, fallback

    def text(self, value) -> str:
        return str(value)

    def value(self, text: str):
        return self.accepted(text)

    def check(self, value) -> None:
        if value is None:
            raise ValueError("Value must not be None")
        # True is an int in Python, and in Slicer too.
        kinds = (int, float) if self.accepted is float else self.accepted
        if not isinstance(value, kinds):
            raise TypeError(f"Value must be of type {self.accepted}, is {value!r}")

    def isIn(self, node, name: str) -> bool:
        return node.HasParameter(name)

    def write(self, node, name: str, value) -> None:
        node.SetParameter(name, self.text(value))

    def read(self, node, name: str):
        return self.value(node.GetParameter(name))

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)


class BoolSerializer(Serializer):
    def value(self, text: str) -> bool:
        return text == "True"


class EnumSerializer(Serializer):
    def text(self, value) -> str:
        return value.name

    def value(self, text: str):
        if text not in self.accepted.__members__:
            raise ValueError(f"Found {text!r} in parameter node but it is not a name in {self.accepted!r}")
        return self.accepted[text]


class NodeSerializer(Serializer):
    def check(self, value) -> None:
        if value is not None and not isinstance(value, self.accepted):
            raise TypeError(f"Value must be of type {self.accepted}, is {value!r}")

    def write(self, node, name: str, value) -> None:
        node.SetParameter(name, "")  # says that the parameter is there, even for None
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node, name: str):
        return node.GetNodeReference(name)

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class NoneSerializer(Serializer):
    def check(self, value) -> None:
        if value is not None:
            raise ValueError("Value must be None")

    def text(self, value) -> str:
        return "True"

    def value(self, text: str) -> None:
        return None


class UnionSerializer(Serializer):
    """`Optional[X]` and `Union[X, Y]`: the value stands under the name of its kind, `name_0`, `name_1`."""

    def __init__(self, members: list[Serializer]):
        self.members = members
        optional = len(members) == 2 and isinstance(members[1], NoneSerializer)
        super().__init__(object, None if optional else members[0].fallback)

    def _fitting(self, value) -> int:
        for index, member in enumerate(self.members):
            # A node's serializer lets None pass, but None has a place of its own.
            if value is None and not isinstance(member, NoneSerializer):
                continue
            try:
                member.check(value)
            except (TypeError, ValueError):
                continue
            return index
        raise TypeError(f"Unable to write value {value!r}")

    def check(self, value) -> None:
        self._fitting(value)

    def isIn(self, node, name: str) -> bool:
        return any(member.isIn(node, f"{name}_{i}") for i, member in enumerate(self.members))

    def write(self, node, name: str, value) -> None:
        index = self._fitting(value)
        with slicer.util.NodeModify(node):
            self.remove(node, name)
            self.members[index].write(node, f"{name}_{index}", value)

    def read(self, node, name: str):
        for index, member in enumerate(self.members):
            if member.isIn(node, f"{name}_{index}"):
                return member.read(node, f"{name}_{index}")
        raise KeyError(f"Unable to find value for name: {name}")

    def remove(self, node, name: str) -> None:
        for index, member in enumerate(self.members):
            member.remove(node, f"{name}_{index}")


_SIMPLE = {int: (Serializer, 0), float: (Serializer, 0.0), str: (Serializer, ""), bool: (BoolSerializer, False)}


def splitAnnotations(kind) -> tuple[object, list]:
    """`Annotated[X, a, b]` as X and [a, b]."""
    if typing.get_origin(kind) is typing.Annotated:
        return kind.__origin__, list(kind.__metadata__)
    return kind, []


def createSerializer(kind) -> Serializer:
    """The serializer for a type, without its annotations; raises TypeError for one that it does not know."""
    if kind in _SIMPLE:
        cls, fallback = _SIMPLE[kind]
        return cls(kind, fallback)
    if kind is type(None):
        return NoneSerializer(kind, None)
    if typing.get_origin(kind) is typing.Union:
        return UnionSerializer([createSerializer(splitAnnotations(k)[0]) for k in typing.get_args(kind)])
    if isinstance(kind, type):
        if issubclass(kind, enum.Enum):
            return EnumSerializer(kind, next(iter(kind)))
        if issubclass(kind, slicer.vtkMRMLNode):
            return NodeSerializer(kind, None)
        if issubclass(kind, pathlib.PurePath):
            return Serializer(kind, kind())
    # `X | None` is not a typing.Union, and Slicer's wrapper refuses it as well.
    raise TypeError(f"Unable to create serializer for type: {kind}")
