"""PythonQt's manners on PySide6, so that code which passes here also runs in Slicer.

PySide6's own classes are taught in place (their types accept new attributes), not subclassed: then widgets
that Qt itself creates, or that come out of a .ui file, behave the same, `type(widget) == qt.QCheckBox`
holds and `isinstance` follows Qt's inheritance. Taught are

- Qt properties as attributes: `button.enabled = True`; `label.text` is a string and cannot be called;
- no other new attributes on a C++ object: a misspelt property is an error;
- `widget.connect("clicked(bool)", slot)`, `disconnect`, slots that take fewer arguments;
- `name` for `objectName`, `className()`, `exec_()`.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import types
from collections.abc import Callable

from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets
from shiboken6 import Shiboken

QT_MODULES = (QtCore, QtGui, QtWidgets, QtNetwork)
# Qt asks these of a widget as virtual functions: as properties they would pass for Python's override.
VIRTUAL = {"sizeHint", "minimumSizeHint"}

_plainGet = QtCore.QObject.__getattribute__
_plainConnect = QtCore.QObject.connect
_plainDisconnect = QtCore.QObject.disconnect
_connections: dict[int, list[tuple[str, object, object]]] = {}  # C++ address -> (signal, slot, connection)
_taught = False
_dropping = False


def signature(text: str) -> str:
    """A C++ signal or slot signature as Qt writes it; MRML objects travel as Python objects here."""
    normalized = bytes(QtCore.QMetaObject.normalizedSignature(text).data()).decode()
    return re.sub(r"vtk\w+\*", "PyObject", normalized)


def hasSignal(sender: QtCore.QObject, text: str) -> bool:
    return sender.metaObject().indexOfSignal(signature(text)) >= 0


def _arity(slot: Callable) -> int | None:
    """How many positional arguments a slot takes; None: any number."""
    try:
        parameters = inspect.signature(slot).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _connect(self: QtCore.QObject, signal: str, *target) -> bool:
    """`sender.connect("signal(type)", slot)`, or `sender.connect("signal(type)", receiver, "slot(type)")`."""
    if not isinstance(signal, str):
        raise TypeError(f"connect takes the signal's signature as text, not {signal!r}")
    if not hasSignal(self, signal):
        raise ValueError(f"{self.className()} has no signal {signal}")
    slot = target[0]
    if len(target) == 2:
        if not isinstance(target[1], str):
            raise TypeError("connect takes the receiver's slot as text")
        return connectMethods(self, signal, slot, target[1])
    if not callable(slot):
        raise TypeError(f"{slot!r} is not callable")
    count = _arity(slot)

    def call(*args):
        slot(*(args if count is None else args[:count]))

    address = Shiboken.getCppPointer(self)[0]
    if address not in _connections:
        _connections[address] = []
        _plainConnect(self, QtCore.SIGNAL("destroyed()"), lambda: _connections.pop(address, None))
    connection = _plainConnect(self, QtCore.SIGNAL(signature(signal)), call)
    _connections[address].append((signature(signal), slot, connection))
    return bool(connection)


def _disconnect(self: QtCore.QObject, signal: str | None = None, slot: Callable | None = None) -> bool:
    """`sender.disconnect("signal(type)", slot)`; without a slot, all of that signal; without both, all."""
    if signal is not None and not hasSignal(self, signal):
        raise ValueError(f"{self.className()} has no signal {signal}")
    known = _connections.get(Shiboken.getCppPointer(self)[0], [])
    found = [c for c in known if (signal is None or c[0] == signature(signal)) and (slot is None or c[1] == slot)]
    for entry in found:
        known.remove(entry)
        _plainDisconnect(entry[2])
    return bool(found)


def connectMethods(sender: QtCore.QObject, signal: str, receiver: QtCore.QObject, slot: str) -> bool:
    """Connects two C++ signatures; raises where either does not exist or the arguments do not fit."""
    for owner, text, found in (
        (sender, signal, sender.metaObject().indexOfSignal(signature(signal))),
        (receiver, slot, receiver.metaObject().indexOfMethod(signature(slot))),
    ):
        if found < 0:
            raise ValueError(f"{owner.className()} '{owner.objectName}' has no {text}")
    if not QtCore.QMetaObject.checkConnectArgs(signature(signal), signature(slot)):
        raise ValueError(f"{signal} does not carry what {slot} takes")
    connected = _plainConnect(sender, QtCore.SIGNAL(signature(signal)), receiver, QtCore.SLOT(signature(slot)))
    return bool(connected)


def _get(self, name: str):
    # PySide6 resolves these two below Python's attribute lookup, so a method on the class is not found.
    if name == "connect":
        return types.MethodType(_connect, self)
    if name == "disconnect":
        return types.MethodType(_disconnect, self)
    return _plainGet(self, name)


def _getter(plain: Callable) -> Callable:
    """Attribute lookup for a class that has one of its own (QProcess, QFile), as :func:`_get`."""

    def get(self, name: str):
        if name in ("connect", "disconnect"):
            return _get(self, name)
        return plain(self, name)

    return get


def _set(self, name: str, value) -> None:
    if _dropping and isinstance(value, QtCore.QObject) and not name.startswith("_"):
        return
    kind = type(self)
    isCpp = kind.__module__.startswith("PySide6.") or getattr(kind, "standsForCpp", False)
    if isCpp and not name.startswith("_") and not hasattr(kind, name):
        raise AttributeError(
            f"'{name}' does not exist on {kind.__name__} and creating new attributes on C++ objects is not allowed"
        )
    declared = inspect.getattr_static(kind, name, None)
    if isinstance(declared, QtCore.Property):
        QtCore.QObject.setProperty(self, name, value)  # PySide6's own __setattr__, replaced here, did this
    elif hasattr(type(declared), "__set__"):
        declared.__set__(self, value)
    else:
        self.__dict__[name] = value


@contextlib.contextmanager
def droppingAttributes():
    """While PySide6's QUiLoader.load runs: it would make each child an attribute, which PythonQt does not."""
    global _dropping
    _dropping = True
    try:
        yield
    finally:
        _dropping = False


def _converted(kind: QtCore.QMetaProperty, value):
    """The value as PythonQt would hand it to Qt; raises where PythonQt refuses it."""
    wanted = kind.typeName()
    if wanted == "bool":
        return bool(value)
    numeric = isinstance(value, (int, float)) or hasattr(value, "__index__")
    if wanted in ("int", "uint", "double", "float") and not kind.isEnumType() and not numeric:
        raise ValueError(f"Property '{kind.name()}' of type '{wanted}' does not accept {value!r}")
    if wanted == "QString" and not isinstance(value, str):
        raise ValueError(f"Property '{kind.name()}' of type 'QString' does not accept {value!r}")
    if wanted == "int" and isinstance(value, float):
        return int(value)
    return value


def _qtProperty(kind: QtCore.QMetaProperty) -> property:
    name = kind.name()

    def get(self):
        return QtCore.QObject.property(self, name)

    def put(self, value) -> None:
        if not kind.isWritable():
            raise AttributeError(f"Property '{name}' of {self.className()} is not settable")
        if not QtCore.QObject.setProperty(self, name, _converted(kind, value)):
            raise ValueError(f"Property '{name}' of type '{kind.typeName()}' does not accept {value!r}")

    return property(get, put, doc=f"Qt property of type {kind.typeName()}")


class _StaticAndProperty(property):
    """A static function on the class and a property on its objects, as `QTimer.singleShot` is both."""

    def __init__(self, function: Callable, own: property) -> None:
        super().__init__(own.fget, own.fset, doc=own.__doc__)
        self._function = function

    def __get__(self, instance, owner=None):
        return self._function if instance is None else super().__get__(instance, owner)


_timers: set[QtCore.QTimer] = set()


def _singleShot(milliseconds: int, function: Callable) -> None:
    """`qt.QTimer.singleShot(ms, function)`; PySide6's own would go through the `connect` taught here."""
    timer = QtCore.QTimer()
    _timers.add(timer)

    def fire():
        _timers.discard(timer)
        function()

    _plainConnect(timer, QtCore.SIGNAL("timeout()"), fire)
    timer.setSingleShot(True)
    timer.start(milliseconds)


def _exec(self, *args):
    return self.exec(*args)


def teach() -> None:
    """Gives every QObject class of PySide6 PythonQt's manners; once in a process, and for all of it."""
    global _taught
    if _taught:
        return
    _taught = True
    for module in QT_MODULES:
        for cls in [getattr(module, name) for name in dir(module)]:
            if not (isinstance(cls, type) and issubclass(cls, QtCore.QObject)):
                continue
            cls.__setattr__ = _set  # each type has a slot of its own, so it is not inherited
            meta = cls.staticMetaObject
            for index in range(meta.propertyOffset(), meta.propertyCount()):
                kind = meta.property(index)
                if kind.name() not in VIRTUAL:
                    taught = _qtProperty(kind)
                    if (cls, kind.name()) == (QtCore.QTimer, "singleShot"):
                        taught = _StaticAndProperty(_singleShot, taught)
                    setattr(cls, kind.name(), taught)
            if "__getattribute__" in vars(cls):
                cls.__getattribute__ = _getter(vars(cls)["__getattribute__"])
            if "exec" in vars(cls):
                cls.exec_ = _exec
    root = QtCore.QObject
    root.name = root.objectName
    root.className = lambda self: self.metaObject().className()
    root.__getattribute__ = _get
