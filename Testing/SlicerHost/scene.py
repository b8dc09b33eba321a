"""The application's MRML scene: real nodes and logics, and what Slicer's C++ side does when nodes come and go."""

from __future__ import annotations

import os
import types

import slicer
import vtk

# Slicer's subject hierarchy plugins take these; a module's parameter node is not among them.
_IN_HIERARCHY = (
    "vtkMRMLDisplayableNode",
    "vtkMRMLTransformNode",
    "vtkMRMLTableNode",
    "vtkMRMLTextNode",
    "vtkMRMLSequenceNode",
)
SLICE_VIEWS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}


class Scene:
    """The scene with its logics, as an empty Slicer has them: colours, three slice views, subject hierarchy."""

    def __init__(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.logic.SetMRMLScene(self.scene)
        self._colors = slicer.vtkMRMLColorLogic()  # the application's own would look for files that are not there
        self._colors.SetMRMLScene(self.scene)
        self.logic.SetColorLogic(self._colors)
        self.logic.SetModuleLogic("Colors", self._colors)  # where the volumes' logic looks
        self.sliceLogics = {name: self._sliceLogic(name, side) for name, side in SLICE_VIEWS.items()}
        collection = vtk.vtkCollection()
        for logic in self.sliceLogics.values():
            collection.AddItem(logic)
        self.logic.SetSliceLogics(collection)
        self.sliceLogicCollection = collection
        self._watchHierarchy()

    def _sliceLogic(self, name: str, orientation: str):
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLScene(self.scene)
        logic.SetMRMLApplicationLogic(self.logic)
        node = logic.AddSliceNode(name)
        node.SetSingletonTag(name)  # it outlives the closing of the scene
        node.SetOrientation(orientation)
        return logic

    def _watchHierarchy(self) -> None:
        """A data node gets its place in the subject hierarchy, and loses it when it goes (C++ plugins in Slicer)."""

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def added(scene, _event, node):
            if node is None or node.GetHideFromEditors() or not any(node.IsA(kind) for kind in _IN_HIERARCHY):
                return
            hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
            if hierarchy is not None and not hierarchy.GetItemByDataNode(node):
                hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def removed(scene, _event, node):
            hierarchy = self.scene.GetSubjectHierarchyNode()
            item = hierarchy.GetItemByDataNode(node) if hierarchy is not None and node is not None else 0
            if item:
                hierarchy.RemoveItem(item, False, False)

        slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        self.scene.AddObserver(self.scene.NodeAddedEvent, added)
        self.scene.AddObserver(self.scene.NodeAboutToBeRemovedEvent, removed)

    def volumesModule(self):
        """`slicer.modules.volumes`, whose logic reads volume files and makes label volumes."""
        logic = slicer.vtkSlicerVolumesLogic()
        logic.SetMRMLScene(self.scene)
        logic.SetMRMLApplicationLogic(self.logic)
        return types.SimpleNamespace(name="Volumes", title="Volumes", logic=lambda: logic)


class FileManager:
    """What slicer.util's load and save functions ask `slicer.app.coreIOManager()` for: volumes and scenes."""

    def fileType(self, path: str) -> str:
        return "SceneFile" if str(path).lower().endswith((".mrml", ".mrb")) else "VolumeFile"

    def fileWriterFileType(self, node) -> str:
        return "VolumeFile" if node.IsA("vtkMRMLVolumeNode") else node.GetClassName()

    def loadNodes(self, fileType: str, parameters: dict, loaded=None, messages=None) -> bool:
        path = parameters["fileName"]
        if fileType == "SceneFile":
            return self._loadScene(path, parameters.get("clear", False))
        if fileType != "VolumeFile":
            raise NotImplementedError(f"SlicerHost reads volumes and scenes, not {fileType}")
        name = parameters.get("name") or os.path.basename(path).split(".")[0]
        options = 1 if parameters.get("labelmap") else 0
        node = slicer.modules.volumes.logic().AddArchetypeVolume(path, name, options)
        if node is not None and loaded is not None:
            loaded.AddItem(node)
        if node is not None and parameters.get("show", True):
            slicer.util.setSliceViewerLayers(background=node, fit=True)
        return node is not None

    def saveNodes(self, fileType: str, parameters: dict, messages=None) -> bool:
        path = parameters["fileName"]
        if fileType == "SceneFile":
            if path.lower().endswith(".mrb"):
                return bool(slicer.mrmlScene.WriteToMRB(path))
            slicer.mrmlScene.SetURL(path)
            slicer.mrmlScene.SetRootDirectory(os.path.dirname(path))
            return bool(slicer.mrmlScene.Commit(path))
        node = slicer.mrmlScene.GetNodeByID(parameters["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode(path)
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        storage.SetUseCompression(parameters.get("useCompression", 1))
        return bool(storage.WriteData(node))

    @staticmethod
    def _loadScene(path: str, clear: bool) -> bool:
        if path.lower().endswith(".mrb"):
            return bool(slicer.mrmlScene.ReadFromMRB(path, clear))
        slicer.mrmlScene.SetURL(path)
        slicer.mrmlScene.SetRootDirectory(os.path.dirname(path))
        return bool(slicer.mrmlScene.Connect() if clear else slicer.mrmlScene.Import())
