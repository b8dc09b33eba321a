"""Model folders (``card.json`` and ``weights.safetensors``): reading, checking and finding them.

Nothing here imports torch but :meth:`Model.weights`, so that a folder can be checked when it is chosen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.models.schema import card_problem

if TYPE_CHECKING:
    from torch import Tensor

CARD = "card.json"
WEIGHTS = "weights.safetensors"
EMBEDDED = Path(__file__).with_name("embedded")
FOLDERS_VARIABLE = "CTHARMONIZE_MODELS"
"""Environment variable with further folders to look in, separated as in PATH."""


@dataclass(frozen=True)
class Model:
    """A checked model folder."""

    folder: Path
    card: dict

    @property
    def name(self) -> str:
        return self.card["name"]

    @property
    def method(self) -> str:
        return self.card["method"]

    def weights(self) -> dict[str, Tensor]:
        """The tensors by name, on the processor. Raises InputError where they changed since the check."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            content = (self.folder / WEIGHTS).read_bytes()
            _check_sum(self.folder, self.card, hashlib.sha256(content).hexdigest())
            return load(content)
        except (OSError, SafetensorError) as error:
            raise InputError(f"The weights in '{self.folder}' cannot be read: {error}.") from error


@dataclass(frozen=True)
class BrokenModel:
    """A folder that looks like a model but cannot be used, and the reason as a sentence."""

    folder: Path
    reason: str


def load_model(folder: str | os.PathLike) -> Model:
    """The model in ``folder``, checked: card against its schema, weights against the card's SHA-256.

    Raises InputError with the reason.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no model folder '{folder}'.")
    for name in (CARD, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"'{folder}' is no model folder: it has no {name}.")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The card of the model '{folder}' is no readable JSON: {error}.") from error
    problem = card_problem(card)
    if problem:
        raise InputError(f"The card of the model '{folder}' is not valid: {problem}.")
    try:
        with (folder / WEIGHTS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    except OSError as error:
        raise InputError(f"The weights in '{folder}' cannot be read: {error.strerror}.") from error
    _check_sum(folder, card, digest.hexdigest())
    _check_container(folder)
    return Model(folder, card)


def installed_models(extra_folders: Iterable[str | os.PathLike] = ()) -> list[Model | BrokenModel]:
    """Embedded models, then those in the folders of CTHARMONIZE_MODELS and in ``extra_folders``.

    A folder is a model itself or holds models, one folder each. Unusable ones come back with their reason, and so do
    :func:`unreadable_folders`.
    """
    found: dict[Path, Model | BrokenModel] = {}
    for parent in [EMBEDDED, *_listed(), *map(Path, extra_folders)]:
        try:
            candidates = _candidates(parent.expanduser())
        except OSError:
            continue
        for folder in candidates:
            if folder.resolve() in found:
                continue
            try:
                found[folder.resolve()] = load_model(folder)
            except InputError as error:
                found[folder.resolve()] = BrokenModel(folder, str(error))
    return [*found.values(), *unreadable_folders()]


def unreadable_folders() -> list[BrokenModel]:
    """Folders that CTHARMONIZE_MODELS names and nobody can look into: a slip of the pen, or a disk that is not there.

    (Folders that a reader once chose in the panel may go: they are no concern.)
    """
    found = []
    for folder in _listed():
        try:
            _candidates(folder)
        except OSError as error:
            reason = f"The folder '{folder}', which {FOLDERS_VARIABLE} names, cannot be read: {error.strerror}."
            found.append(BrokenModel(folder, reason))
    return found


def find_model(folder: str | os.PathLike) -> Model:
    """The model in ``folder``, which may also be the name of an installed model, or of its folder. Raises InputError
    with the reason."""
    if Path(folder).expanduser().exists():
        return load_model(folder)
    installed = installed_models()
    models = [model for model in installed if isinstance(model, Model)]
    for named in ([m for m in models if m.name == str(folder)], [m for m in models if m.folder.name == str(folder)]):
        if named:
            return named[0]
    names = ", ".join(f"'{model.name}'" for model in models) or "none"
    raise InputError(
        f"There is no model folder '{folder}', and no model of that name is installed; there are: {names}."
        f"{_hint(installed)}"
    )


def model_for(method: str, folder: str | os.PathLike | None = None) -> Model:
    """The model in ``folder``, or without one the first installed model of ``method``.

    ``folder`` as in :func:`find_model`. Raises InputError with the reason.
    """
    if folder is not None:
        model = find_model(folder)
        if model.method != method:
            raise InputError(f"The model '{model.name}' is for the method {model.method}, not {method}.")
        return model
    models = installed_models()
    usable = [model for model in models if isinstance(model, Model) and model.method == method]
    if usable:
        return usable[0]
    raise InputError(f"No model for the method {method} is installed: give the folder of one.{_hint(models)}")


def _hint(models: list[Model | BrokenModel]) -> str:
    """Why a model may be missing among ``models``."""
    broken = [model for model in models if isinstance(model, BrokenModel)]
    return f" ({broken[0].reason})" if broken else ""


def _listed() -> list[Path]:
    named = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    return [Path(folder).expanduser() for folder in named if folder]


def _candidates(parent: Path) -> list[Path]:
    """Model folders: ``parent``, or those in it. Raises OSError where it cannot be read."""
    return [parent] if _looks_like_a_model(parent) else sorted(filter(_looks_like_a_model, parent.iterdir()))


def _looks_like_a_model(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in (CARD, WEIGHTS))


def _digest(file) -> hashlib._Hash:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


def _check_sum(folder: Path, card: dict, digest: str) -> None:
    if digest != card["weights_sha256"]:
        raise InputError(
            f"The weights in '{folder}' do not match their card (SHA-256 {digest[:12]}..., expected "
            f"{card['weights_sha256'][:12]}...): copy the model folder again."
        )


def _check_container(folder: Path) -> None:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        return  # a fresh Slicer lists its models before it has the package; the checksum was right

    try:
        with safe_open(str(folder / WEIGHTS), framework="numpy") as file:
            if not file.keys():
                raise InputError(f"The weights in '{folder}' are empty.")
    except (OSError, SafetensorError) as error:
        raise InputError(f"The weights in '{folder}' are no whole safetensors file: {error}.") from error
