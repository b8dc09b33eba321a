"""Self tests that run inside Slicer (``Slicer --testing --python-script``, or ctest); they need torch in Slicer."""

import unittest

import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

from CTHarmonize import CTHarmonizeLogic


class CTHarmonizeSelfTest(ScriptedLoadableModuleTest):
    """The module in the real application, with the real background process."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self, **kwargs):
        for test in (
            self.test_panel, self.test_harmonizePhantom, self.test_measurePhantom, self.test_closeSceneWhileRunning
        ):  # fmt: skip
            self.setUp()
            test()

    def test_panel(self):
        from CTHarmonizeGui import phantom

        slicer.util.selectModule("CTHarmonize")
        widget = slicer.util.getModuleWidget("CTHarmonize")
        self.assertFalse(widget.ui.applyButton.enabled)
        volume = phantom.addPhantom()
        widget.ui.inputSelector.setCurrentNode(volume)
        self.assertTrue(widget.ui.applyButton.enabled)
        self.assertIs(slicer.util.getModuleLogic("CTHarmonize"), widget.logic)

    def test_harmonizePhantom(self):
        from CTHarmonizeGui import phantom

        volume = phantom.addPhantom()
        job = CTHarmonizeLogic().harmonize(volume, "smooth", None, method="mtf-filter", samples=None, device="cpu")
        self.assertTrue(job.waitForFinished(300.0), job.error)
        phantom.checkResult(self, job, volume)
        self.assertFalse(job.folder.path.exists())

    def test_measurePhantom(self):
        from CTHarmonizeGui import phantom

        before, after = phantom.addPhantom(name="before"), phantom.addPhantom(name="after", noise=10.0)
        table = CTHarmonizeLogic().compareVolumes(before, after)
        self.assertEqual(table.GetCellText(0, 0), "Noise in water-like tissue")
        noise = [float(table.GetCellText(0, column)) for column in (2, 3)]
        self.assertGreater(noise[0], 1.5 * noise[1])
        self.assertTrue(slicer.util.getNodesByClass("vtkMRMLPlotChartNode"))

    def test_closeSceneWhileRunning(self):
        from CTHarmonizeGui import phantom, registry

        job = CTHarmonizeLogic().harmonize(phantom.addPhantom(), "smooth", None, method="mtf-filter", samples=None)
        slicer.mrmlScene.Clear()
        self.assertFalse(job.waitForFinished(60.0))
        self.assertEqual(job.state, "cancelled")
        self.assertFalse(job.folder.path.exists())
        self.assertNotIn(job, registry.running)


if __name__ == "__main__":
    unittest.main()
