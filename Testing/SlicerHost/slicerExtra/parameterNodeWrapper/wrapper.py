"""`@parameterNodeWrapper`: a class of typed members becomes a view of a parameter node."""

from __future__ import annotations

import typing
import weakref

import slicer
import vtk

from .connectors import Decimals, SingleStep, createGuiConnector
from .serializers import Default, Validator, createSerializer, splitAnnotations

SlicerParameterNamePropertyName = "SlicerParameterName"


class _Parameter:
    """One typed member: its name, how it is stored and checked, its default."""

    def __init__(self, owner: type, name: str, datatype):
        kind, annotations = splitAnnotations(datatype)
        self.name, self.datatype = name, datatype
        try:
            self.serializer = createSerializer(kind)
        except TypeError as error:
            raise Exception(f"Unable to create serializer for {owner} member {name}") from error
        self.validators = [a for a in annotations if isinstance(a, Validator)]
        unknown = [a for a in annotations if not isinstance(a, (Default, Validator, Decimals, SingleStep))]
        if unknown:
            raise TypeError(f"Unknown annotations of {name}: {unknown}")
        given = next((a for a in annotations if isinstance(a, Default)), None)
        fallback = given.value if given else self.serializer.fallback
        self.default = getattr(owner, name, fallback)

    def write(self, node, value) -> None:
        self.serializer.check(value)
        for validator in self.validators:
            validator.validate(value)
        self.serializer.write(node, self.name, value)

    def read(self, node):
        if not self.serializer.isIn(node, self.name):
            self.write(node, self.default)
        return self.serializer.read(node, self.name)

    def asProperty(self) -> property:
        return property(lambda owner: owner.getValue(self.name), lambda owner, value: owner.setValue(self.name, value))


class _Members:
    """What a wrapped class can do beside its members."""

    _is_parameter_node_wrapper = True
    allParameters: dict[str, _Parameter]

    def __init__(self, parameterNode, prefix: str | None = None):
        self.parameterNode = parameterNode
        self._guis: dict[int, dict] = {}
        self._nextTag = 0
        self._updating = False
        self._observed = False
        for parameter in self.allParameters.values():
            parameter.read(parameterNode)

    def _parameter(self, name: str) -> _Parameter:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}")
        return self.allParameters[name]

    def getValue(self, name: str):
        return self._parameter(name).read(self.parameterNode)

    def setValue(self, name: str, value) -> None:
        self._parameter(name).write(self.parameterNode, value)

    def default(self, name: str) -> Default:
        return Default(self._parameter(name).default)

    @classmethod
    def dataType(cls, name: str):
        return cls.allParameters[name].datatype

    def connectGui(self, gui) -> int:
        """Connects every widget that carries the SlicerParameterName property."""
        if getattr(gui, "isWidgetType", lambda: False)():
            import qt

            widgets = gui.findChildren(qt.QWidget)
        else:
            widgets = list(vars(gui).values())
        found = {}
        for widget in widgets:
            name = widget.property(SlicerParameterNamePropertyName)
            if name:
                found[name] = widget
        return self.connectParametersToGui(found)

    def connectParametersToGui(self, mapping: dict) -> int:
        connectors = {name: createGuiConnector(w, self._parameter(name).datatype) for name, w in mapping.items()}
        tag, self._nextTag = self._nextTag, self._nextTag + 1
        self._guis[tag] = connectors
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.onChanged(lambda name=name, connector=connector: self._fromGui(name, connector))
        if not self._observed:
            self._observed = True
            # Weak: through the node, the observer would keep this object in a cycle, which Python's collector
            # then clears under the node that lives on in the scene, and its next event calls a freed function.
            weak = weakref.ref(self)
            observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: (me := weak()) and me._toGui())
            weakref.finalize(self, self.parameterNode.RemoveObserver, observer).atexit = False
        return tag

    def disconnectGui(self, tag: int) -> None:
        for connector in self._guis.pop(tag, {}).values():
            connector.onChanged(None)

    def _fromGui(self, name: str, connector) -> None:
        if not self._updating:
            with slicer.util.NodeModify(self):
                self.setValue(name, connector.read())

    def _toGui(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for connectors in self._guis.values():
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updating = False

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified):
        return self.parameterNode.EndModify(wasModified)

    def AddObserver(self, event, callback, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()


def isParameterNodeWrapper(classOrObject) -> bool:
    return getattr(classOrObject, "_is_parameter_node_wrapper", False)


def _wrap(cls: type) -> type:
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in hints:
        if hasattr(_Members, name) and name in vars(_Members):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
    parameters = {name: _Parameter(cls, name, datatype) for name, datatype in hints.items()}
    for name, parameter in parameters.items():
        setattr(cls, name, parameter.asProperty())
    for name, member in vars(_Members).items():
        if not name.startswith("__") or name == "__init__":
            setattr(cls, name, member)
    cls.allParameters = parameters
    return cls


def parameterNodeWrapper(classtype: type | None = None):
    """Class decorator, with or without parentheses."""
    return _wrap if classtype is None else _wrap(classtype)
