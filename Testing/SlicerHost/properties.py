"""Qt properties, with their setter, for the stand-ins of Slicer's C++ widgets."""

from __future__ import annotations

from PySide6 import QtCore


def stored(kind, name: str, default, after: str | None = None) -> QtCore.Property:
    """A property kept in the object; `after` names a method to call when it has changed."""
    key = "_" + name

    def get(self):
        return self.__dict__.get(key, default)

    def put(self, value) -> None:
        if value == get(self):
            return
        self.__dict__[key] = value
        if after:
            getattr(self, after)()

    return QtCore.Property(kind, get, put)


def forwarded(kind, inner: str, name: str) -> QtCore.Property:
    """A property that is the one of an inner widget, `self.<inner>`."""

    def get(self):
        return getattr(getattr(self, inner), name)

    def put(self, value) -> None:
        setattr(getattr(self, inner), name, value)

    return QtCore.Property(kind, get, put)


def withSetters(cls: type) -> type:
    """Adds `setText` and so on for each property, as the C++ class has them."""
    for name, member in list(vars(cls).items()):
        setter = "set" + name[0].upper() + name[1:]
        if isinstance(member, QtCore.Property) and not hasattr(cls, setter):
            setattr(cls, setter, lambda self, value, name=name: setattr(self, name, value))
    return cls
