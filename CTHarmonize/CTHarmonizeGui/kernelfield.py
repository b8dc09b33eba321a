"""A kernel as the reader chooses it: a name, or an f50 of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import qt
from slicer.i18n import tr as _

from CTHarmonizeGui.choices import kernelTitle

_OTHER = "f50"


class KernelField:
    """A combo box of kernels with a spin box that shows, and for "Other" sets, the f50 in lp/cm.

    The value is ``""`` (unset), a kernel's name, or an f50 as text. ``onChosen(value)`` hears of the reader's choice.
    """

    def __init__(self, combo, spin, unset: str, onChosen: Callable[[str], None]) -> None:
        self._combo, self._spin, self._unset, self._onChosen = combo, spin, unset, onChosen
        combo.connect("currentIndexChanged(int)", self._onIndex)
        spin.connect("valueChanged(double)", self._onValue)

    def show(self, value: str, kernels: Mapping[str, float], limits: tuple[float, float]) -> None:
        """Offer ``kernels`` (name: f50) and f50s within ``limits``; show ``value`` without a word to ``onChosen``."""
        combo, spin = self._combo, self._spin
        blocked = combo.blockSignals(True), spin.blockSignals(True)
        items = [(self._unset, ""), *((kernelTitle(name), name) for name in kernels), (_("Other f50"), _OTHER)]
        if [(combo.itemText(i), combo.itemData(i)) for i in range(combo.count)] != items:
            combo.clear()
            for text, data in items:
                combo.addItem(text, data)
        data = value if value == "" or value in kernels else _OTHER
        combo.setCurrentIndex([item[1] for item in items].index(data))
        spin.minimum, spin.maximum = round(limits[0], 1), round(limits[1], 1)
        if data != "":
            spin.value = kernels[data] if data in kernels else _number(value, limits)
        spin.visible = data != ""
        spin.readOnly = data != _OTHER
        spin.setButtonSymbols(qt.QAbstractSpinBox.UpDownArrows if data == _OTHER else qt.QAbstractSpinBox.NoButtons)
        combo.blockSignals(blocked[0])
        spin.blockSignals(blocked[1])

    def showOnly(self, name: str) -> None:
        """Offer the kernel ``name`` alone, without a word to ``onChosen``."""
        combo = self._combo
        blocked = combo.blockSignals(True)
        if combo.count != 1 or combo.itemData(0) != name:
            combo.clear()
            combo.addItem(kernelTitle(name), name)
        combo.setCurrentIndex(0)
        combo.blockSignals(blocked)
        self._spin.visible = False

    def _onIndex(self, index: int) -> None:
        data = self._combo.itemData(index)
        self._onChosen(f"{self._spin.value:.1f}" if data == _OTHER else data)

    def _onValue(self, value: float) -> None:
        if self._combo.itemData(self._combo.currentIndex) == _OTHER:
            self._onChosen(f"{value:.1f}")


def _number(text: str, limits: tuple[float, float]) -> float:
    """The f50 in ``text``; a name that is out of reach becomes the nearest f50 that is within it."""
    from CTHarmonizeLib.ct.mtf import NAMED_KERNELS

    try:
        f50 = NAMED_KERNELS[text].f50 if text in NAMED_KERNELS else float(text)
    except ValueError:
        f50 = limits[0]
    return min(max(f50, limits[0]), limits[1])
