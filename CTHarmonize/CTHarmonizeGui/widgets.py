"""What the panel does to its widgets again and again, and what it says of a model."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _


def fill(combo, items: list[tuple[str, str]], current: str | None) -> None:
    """Show ``items`` (text, data), leaving the list alone where it is the same."""
    blocked = combo.blockSignals(True)
    if [(combo.itemText(i), combo.itemData(i)) for i in range(combo.count)] != items:
        combo.clear()
        for text, data in items:
            combo.addItem(text, data)
    combo.setCurrentIndex(next((i for i, item in enumerate(items) if item[1] == current), -1))
    combo.blockSignals(blocked)


def enable(widget, enabled: bool, reason: str) -> None:
    """Enable, or disable with the reason for a tool tip (its own comes back)."""
    own = _ownToolTip(widget)
    widget.enabled = enabled
    widget.toolTip = own if enabled else reason


def tellName(selector) -> None:
    """The chosen node's whole name, which a narrow panel cuts off, before the tool tip of an enabled ``selector``."""
    if selector.enabled:
        node, own = selector.currentNode(), _ownToolTip(selector)
        selector.toolTip = f"{node.GetName()}\n{own}" if node else own


def _ownToolTip(widget) -> str:
    own = widget.property("ownToolTip")
    if own is None:
        own = widget.toolTip
        widget.setProperty("ownToolTip", own)
    return own


def modelTitle(model: Any) -> str:
    return f"{model.card['name']} {model.card['version']}"


def modelSummary(model: Any) -> str:
    card = model.card
    return _(
        "Made for pixels of {low:g} to {high:g} mm; trained on {patients} patients.\n{folder}"
    ).format(
        low=card["pixel_spacing"][0],
        high=card["pixel_spacing"][1],
        patients=card["training"].get("patients", "?"),
        folder=model.folder,
    )
