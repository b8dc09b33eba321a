"""Volumes out of the scene and into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from CTHarmonizeLib.errors import CannotRunError, InputError

INPUT_ROLE = "ctharmonizeInput"
"""Node reference of a result to the volume it was made from."""

_NAME_ATTRIBUTE = "CTHarmonize.name"
_SLAB_BYTES = 16 << 20
_DEVIATION_COLORS = ("vtkMRMLColorTableNodeFileInferno.txt", "vtkMRMLColorTableNodeIron")


def checkInput(node) -> None:
    """Raise InputError, with what to do, where ``node`` is no scalar CT volume that can be harmonized."""
    if node is None:
        raise InputError(_("Choose the CT volume to harmonize."))
    name = node.GetName()
    if not node.IsA("vtkMRMLScalarVolumeNode") or node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InputError(_("'{name}' is not a CT volume: choose a scalar volume in HU.").format(name=name))
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise InputError(_("'{name}' holds no image: choose a loaded CT volume.").format(name=name))
    if image.GetNumberOfScalarComponents() != 1:
        raise InputError(
            _("'{name}' has {count} values a voxel: choose a scalar volume in HU.").format(
                name=name, count=image.GetNumberOfScalarComponents()
            )
        )
    transform = node.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        raise InputError(
            _(
                "'{name}' lies under the non-linear transform '{transform}' (as a tilted gantry or uneven slices "
                "give): harden or remove the transform first."
            ).format(name=name, transform=transform.GetName())
        )
    modality = subjectAttribute(node, "DICOM.Modality")
    if modality not in ("", "CT"):
        raise InputError(_("'{name}' is a {modality} image: choose a CT volume.").format(name=name, modality=modality))


def firstInput():
    """The first volume of the scene that can be harmonized and is no result itself; None where there is none."""
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        try:
            checkInput(node)
        except InputError:
            continue
        if node.GetNodeReferenceID(INPUT_ROLE) is None:
            return node
    return None


def subjectAttribute(node, name: str) -> str:
    """Attribute of the volume's subject hierarchy item, empty where there is none."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
    return (hierarchy.GetItemAttribute(item, name) or "") if item else ""


def exportVolume(node, path: Path, header: Mapping[str, str]) -> Iterator[None]:
    """Write ``node`` as uncompressed NRRD, slab by slab; ``header`` becomes its key-value pairs.

    Done here rather than by a storage node, which would touch the volume's own file name and block the window.
    Raises CannotRunError where the voxels change between two slabs.
    """
    import numpy as np

    began = _voxelsTime(node)
    array = slicer.util.arrayFromVolume(node)
    kind = array.dtype
    if kind.kind == "b" or (kind.kind in "iu" and kind.itemsize < 2):
        dtype = np.dtype("<i2")
    elif kind.kind in "iu":
        yield
        _checkUnchanged(node, began)
        fits = kind == np.int16 or (array.min() >= -32768 and array.max() <= 32767)
        dtype = np.dtype("<i2") if fits else np.dtype("<f4")
    else:
        dtype = np.dtype("<f4")
    lines = [
        "NRRD0005",
        f"type: {'int16' if dtype.kind == 'i' else 'float'}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: " + " ".join(str(size) for size in reversed(array.shape)),
        "space directions: " + " ".join(_vector(column) for column in _ijkToLps(node)[:3]),
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        "space origin: " + _vector(_ijkToLps(node)[3]),
    ]
    lines += [f"{key}:={' '.join(str(value).split())}" for key, value in header.items() if str(value).strip()]
    with open(path, "wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode("utf-8"))
        rows = max(1, _SLAB_BYTES // max(1, array[0].size * dtype.itemsize))
        for start in range(0, array.shape[0], rows):
            file.write(np.ascontiguousarray(array[start : start + rows], dtype=dtype).tobytes())
            yield
            _checkUnchanged(node, began)


def _voxelsTime(node) -> int:
    """When the voxels were last changed or exchanged; 0 where there are none."""
    image = node.GetImageData()
    return image.GetMTime() if image is not None else 0


def _checkUnchanged(node, began: int) -> None:
    if _voxelsTime(node) != began:
        raise CannotRunError(_("The volume changed while it was being read: try again."))


def readVolume(path: Path) -> tuple[Any, Any]:
    """Voxels (slices, rows, columns) and IJK-to-RAS (4, 4) of a result's file."""
    import numpy as np
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise CannotRunError(_("The result could not be read back: {reason}").format(reason=error)) from None
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


def fillVolume(node, voxels, matrix, inputNode) -> None:
    """Put ``voxels`` into ``node``, in the place of ``inputNode``.

    Its IJK-to-RAS is taken where ``matrix`` differs by no more than a file's rounding.
    """
    import numpy as np

    own = slicer.util.arrayFromVTKMatrix(_ijkToRas(inputNode))
    matrix = own if np.allclose(matrix, own, rtol=0.0, atol=1e-4) else matrix
    with slicer.util.NodeModify(node):
        slicer.util.updateVolumeFromArray(node, voxels)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
        node.SetAndObserveTransformNodeID(inputNode.GetTransformNodeID())
        node.SetNodeReferenceID(INPUT_ROLE, inputNode.GetID())


def outputVolume(node, name: str):
    """``node`` if it still is in the scene, otherwise a new volume; (node, whether new).

    A name that we gave follows the request; one that the reader gave stays.
    """
    isNew = node is None or slicer.mrmlScene.GetNodeByID(node.GetID() or "") is not node
    if isNew:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    if isNew or node.GetName() == node.GetAttribute(_NAME_ATTRIBUTE):
        if node.GetName() != name:
            node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
        node.SetAttribute(_NAME_ATTRIBUTE, node.GetName())
    return node, isNew


def showLike(node, inputNode) -> None:
    """Window, level and colours of the input."""
    node.CreateDefaultDisplayNodes()
    display, source = node.GetDisplayNode(), inputNode.GetDisplayNode()
    if source is not None:
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(source.GetWindow(), source.GetLevel())
        display.SetInterpolate(source.GetInterpolate())
        display.SetAndObserveColorNodeID(source.GetColorNodeID())


def showDeviation(node) -> None:
    """A colour map from 0 HU to a round number that nearly all voxels stay below."""
    import numpy as np

    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    values = slicer.util.arrayFromVolume(node).ravel()
    values = values[:: max(1, values.size // 1_000_003)]  # enough, and at once on the largest volume
    inside = values[values > 0]
    top = float(np.percentile(inside, 99)) if inside.size else 1.0
    top = max(1.0, float(np.ceil(top / 5.0) * 5.0) if top > 5.0 else float(np.ceil(top)))
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(top, top / 2.0)
    for color in _DEVIATION_COLORS:
        if slicer.mrmlScene.GetNodeByID(color):
            display.SetAndObserveColorNodeID(color)
            break


def placeBeside(nodes, inputNode) -> None:
    """Stand ``nodes`` right after the input in its study."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    inputItem = hierarchy.GetItemByDataNode(inputNode)
    if not inputItem:
        return
    parent = hierarchy.GetItemParent(inputItem)
    siblings = vtk.vtkIdList()
    hierarchy.GetItemChildren(parent, siblings)
    order = [siblings.GetId(index) for index in range(siblings.GetNumberOfIds())]
    after = order[order.index(inputItem) + 1 :]
    for node in nodes:
        item = hierarchy.GetItemByDataNode(node)
        hierarchy.SetItemParent(item, parent)
        if after:
            hierarchy.MoveItem(item, after[0])


def setAttributes(node, attributes: Mapping[str, object]) -> None:
    """Keep what is known of a result with it, as ``CTHarmonize.<key>``."""
    for key, value in attributes.items():
        if value not in (None, ""):
            node.SetAttribute(f"CTHarmonize.{key}", str(value))


def _ijkToRas(node) -> vtk.vtkMatrix4x4:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def _ijkToLps(node) -> list[list[float]]:
    """The columns i, j, k and the origin, in LPS mm."""
    matrix = _ijkToRas(node)
    sign = (-1.0, -1.0, 1.0)
    return [[sign[row] * matrix.GetElement(row, column) for row in range(3)] for column in range(4)]


def _vector(values) -> str:
    return "(" + ",".join(repr(float(value)) for value in values) + ")"


def showResult(node, inputNode) -> bool:
    """Put ``node`` into the slice views that show the input, or nothing; whether there are any."""
    views = [
        view
        for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        if view.GetBackgroundVolumeID() in (None, "", inputNode.GetID())
    ]
    for view in views:
        view.SetBackgroundVolumeID(node.GetID())
    return bool(views)
