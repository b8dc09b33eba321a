"""A small CT-like volume for the self tests, and what must hold of every result."""

from __future__ import annotations

import slicer


def addPhantom(slices: int = 4, size: int = 96, name: str = "CT phantom", noise: float = 25.0):
    """Add a soft-tissue cylinder in air, with fat and bone rods and white ``noise``, lying askew; int16 HU."""
    import numpy as np

    random = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2.0
    plane = np.where(np.hypot(x, y) < 0.42 * size, 40.0, -1000.0)
    plane[np.hypot(x - 0.2 * size, y) < 0.07 * size] = 600.0
    plane[np.hypot(x + 0.2 * size, y) < 0.07 * size] = -100.0
    for axis in (0, 1):  # a kernel of the kind a scanner has
        plane = sum(weight * np.roll(plane, shift, axis) for shift, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)))
    voxels = np.clip(np.rint(plane + random.normal(0.0, noise, (slices, size, size))), -1024, 3071).astype(np.int16)
    turn = np.deg2rad(20.0)
    matrix = np.eye(4)
    matrix[:3, 0] = 0.8 * np.array([-np.cos(turn), -np.sin(turn), 0.0])
    matrix[:3, 1] = 0.8 * np.array([np.sin(turn), -np.cos(turn), 0.0])
    matrix[:3, 2] = [0.0, 0.0, 2.5]
    matrix[:3, 3] = [31.4, -15.9, 265.3]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, voxels)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(400.0, 40.0)
    return node


def checkResult(test, job, inputVolume) -> None:
    """Geometry, names, window and content of a smoothing job's volumes, with ``test``'s assertions."""
    import numpy as np

    volumes = (job.harmonizedVolume, job.meanVolume)
    test.assertNotIn(None, volumes)
    # the filter draws no samples: it has a spread if anything
    test.assertEqual(job.standardDeviationVolume is not None, job.request.augment)
    own, before = ijkToRas(inputVolume), slicer.util.arrayFromVolume(inputVolume)
    for volume in volumes:
        test.assertLess(np.abs(ijkToRas(volume) - own).max(), 1e-6)
        test.assertEqual(slicer.util.arrayFromVolume(volume).shape, before.shape)
        test.assertEqual(volume.GetTransformNodeID(), inputVolume.GetTransformNodeID())
        test.assertTrue(volume.GetName().startswith(inputVolume.GetName() + " harmonized"))
    after = slicer.util.arrayFromVolume(job.harmonizedVolume)
    rows, columns = before.shape[1:]
    middle = (slice(None), slice(rows // 2 - 10, rows // 2 + 10), slice(columns // 2 - 5, columns // 2 + 5))
    test.assertLess(after[middle].std(), 0.8 * before[middle].std())
    test.assertLess(abs(after[middle].mean() - before[middle].mean()), 2.0)
    display, source = job.harmonizedVolume.GetDisplayNode(), inputVolume.GetDisplayNode()
    test.assertEqual((display.GetWindow(), display.GetLevel()), (source.GetWindow(), source.GetLevel()))


def ijkToRas(node):
    """IJK-to-RAS (4, 4) of a volume."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)
