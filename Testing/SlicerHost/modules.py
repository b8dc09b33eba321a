"""Scripted modules in the application: loading, the module object, its panel, unloading and reloading."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .mrmlWidgets import qMRMLWidget


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The application's side of a panel: holds the module's Python widget class."""

    def __init__(self, module: qSlicerScriptedLoadableModule):
        super().__init__()
        self._module = module
        self._entered = False
        self.setObjectName(f"{module.name}ModuleWidget")
        self.setLayout(QtWidgets.QVBoxLayout(self))
        self.setMRMLScene(slicer.mrmlScene)
        self._python = None
        self.reload()

    def reload(self) -> None:
        """Makes the Python widget from the module's source as it is loaded now."""
        name = self._module.name + "Widget"
        self._python = getattr(sys.modules[self._module.name], name)(self)
        setattr(slicer.modules, name, self._python)
        self._python.setup()

    def self(self):
        return self._python

    isEntered = property(lambda self: self._entered)

    def enter(self) -> None:
        self._entered = True
        getattr(self._python, "enter", lambda: None)()

    def exit(self) -> None:
        self._entered = False
        getattr(self._python, "exit", lambda: None)()


class qSlicerScriptedLoadableModule(QtCore.QObject):
    """The application's side of a scripted module; its fields are those that Slicer has."""

    standsForCpp = True

    def __init__(self, name: str, path: str):
        super().__init__()
        self.setObjectName(name)
        self._values = {
            "title": name,
            "category": "",
            "categories": [],
            "contributors": [],
            "dependencies": [],
            "helpText": "",
            "acknowledgementText": "",
            "icon": QtGui.QIcon(),
            "hidden": False,
            "index": -1,
            "widgetRepresentationCreationEnabled": True,
            "associatedNodeTypes": [],
        }
        self._path = path
        self._widget = None

    path = property(lambda self: self._path)

    def widgetRepresentation(self):
        if self._widget is None:
            self._widget = self.createNewWidgetRepresentation()
        return self._widget

    def createNewWidgetRepresentation(self):
        return qSlicerScriptedLoadableModuleWidget(self)

    def logic(self):
        return slicer.vtkSlicerScriptedLoadableModuleLogic()


def _field(name: str) -> property:
    def put(self, value) -> None:
        self._values[name] = value

    return property(lambda self: self._values[name], put)


for _name in qSlicerScriptedLoadableModule("", "")._values:
    setattr(qSlicerScriptedLoadableModule, _name, _field(_name))


class ModuleManager(QtCore.QObject):
    """Knows the loaded modules; says when one goes."""

    moduleAboutToBeUnloaded = QtCore.Signal(str)
    moduleLoaded = QtCore.Signal(str)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._modules: dict[str, object] = {}
        slicer.modules = types.SimpleNamespace()

    def add(self, name: str, module) -> None:
        self._modules[name.lower()] = module
        setattr(slicer.modules, name.lower(), module)
        self.moduleLoaded.emit(name)

    def load(self, path: str | Path) -> qSlicerScriptedLoadableModule:
        """Loads a scripted module from its .py file, as Slicer does at start-up."""
        path = Path(path).resolve()
        name = path.stem
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        source = importlib.util.module_from_spec(spec)
        sys.modules[name] = source
        spec.loader.exec_module(source)
        module = qSlicerScriptedLoadableModule(name, str(path))
        module._python = getattr(source, name)(module)
        self.add(name, module)
        return module

    def module(self, name: str):
        return self._modules.get(name.lower())

    def modulesNames(self) -> list[str]:
        return [module.name for module in self._modules.values()]

    def scriptedModuleNames(self) -> list[str]:
        return [m.name for m in self._modules.values() if isinstance(m, qSlicerScriptedLoadableModule)]

    def factoryManager(self) -> ModuleManager:
        """In Slicer another object; here this one answers for it."""
        return self

    loadedModuleNames = modulesNames

    def unload(self, name: str) -> None:
        """Says that the module goes (its widget's `cleanup` listens), and takes it away."""
        module = self._modules.pop(name.lower(), None)
        if module is None:
            return
        self.moduleAboutToBeUnloaded.emit(name)
        widget = getattr(module, "_widget", None)
        if widget is not None:
            widget.deleteLater()
            module._widget = None
        for attribute in (name.lower(), name + "Widget"):
            if hasattr(slicer.modules, attribute):
                delattr(slicer.modules, attribute)
