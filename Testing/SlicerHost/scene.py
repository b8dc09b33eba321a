"""The application's MRML scene: real nodes and logics, and what Slicer's C++ modules do when nodes come and go."""

from __future__ import annotations

import os
import types

import vtk

import slicer

# Slicer's subject hierarchy plugins take these; a module's parameter node is not among them.
_SHOWN = (
    "vtkMRMLDisplayableNode",
    "vtkMRMLTransformNode",
    "vtkMRMLTableNode",
    "vtkMRMLTextNode",
    "vtkMRMLSequenceNode",
)


def makeScene():
    """A scene and its application logic, set up as an empty Slicer has them."""
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic() if hasattr(slicer, "vtkSlicerApplicationLogic") else None
    if logic is not None:
        logic.SetMRMLScene(scene)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    assert hierarchy is not None

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def added(_scene, _event, node):
        if not any(node.IsA(kind) for kind in _SHOWN) or node.GetHideFromEditors():
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        if hierarchy is not None and not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def removed(_scene, _event, node):
        hierarchy = scene.GetSubjectHierarchyNode()
        item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
        if item:
            hierarchy.RemoveItem(item, False, False)

    scene.AddObserver(scene.NodeAddedEvent, added)
    scene.AddObserver(scene.NodeRemovedEvent, removed)
    return scene, logic


def volumesModule(scene, applicationLogic):
    """`slicer.modules.volumes`, whose logic reads volume files and makes label volumes."""
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(scene)
    if applicationLogic is not None:
        logic.SetMRMLApplicationLogic(applicationLogic)
    return types.SimpleNamespace(name="Volumes", logic=lambda: logic, title="Volumes")


class FileManager:
    """What `slicer.util.loadVolume` and `saveNode` ask for."""

    def loadNodes(self, fileType: str, parameters: dict, loaded=None, messages=None) -> bool:
        if fileType != "VolumeFile":
            raise NotImplementedError(f"SlicerHost reads volumes only, not {fileType}")
        path = parameters["fileName"]
        name = parameters.get("name") or os.path.basename(path).split(".")[0]
        options = 1 if parameters.get("labelmap") else 0
        node = slicer.modules.volumes.logic().AddArchetypeVolume(path, name, options)
        if node is not None and loaded is not None:
            loaded.AddItem(node)
        return node is not None

    def addDefaultStorageNodes(self) -> None:
        pass
