"""What every network's configuration can do: read itself from a model card and write itself to one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TypeVar

Config = TypeVar("Config", bound="NetworkConfig")


@dataclass(frozen=True)
class NetworkConfig:
    """Base of the networks' configurations, frozen dataclasses whose defaults are the paper's network.

    All have ``planes``, of the input, and ``conditions``, the length of the acquisition vector (0: one mapping).
    """

    @property
    def multiple(self) -> int:
        """Of an image's sides, in pixels."""
        return 1

    @classmethod
    def from_dict(cls: type[Config], entries: dict) -> Config:
        """Configuration from a card's ``network``; raises ValueError for unknown entries."""
        unknown = set(entries) - {entry.name for entry in fields(cls)}
        if unknown:
            raise ValueError(f"Unknown network settings: {', '.join(sorted(unknown))}.")
        lists = {name: tuple(value) for name, value in entries.items() if isinstance(value, list)}
        return cls(**{**entries, **lists})

    def as_dict(self) -> dict:
        """Plain values, for a card."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
