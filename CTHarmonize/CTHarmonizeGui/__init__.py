"""The Slicer side of CTHarmonize: background jobs, volumes in and out of the scene, the panel.

Nothing here is imported by CTHarmonizeLib. Slicer, Qt and MRML names are camelCase, as in Slicer.
"""
