"""Find, classify and count white blood cells in stained smears."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_sample_data": ["Sample", "samples"],
        "cells": ["Cells", "measure"],
        "classifier": ["Classifier", "ModelCard"],
        "count": ["differential"],
        "crop": ["CropSize", "crop_cells"],
        "export": ["read_results", "write_results"],
        "pipeline": ["Analysis", "Progress", "analyse", "annotate", "run"],
        "segment": ["SegmentParameters"],
        "slide": ["ImageError", "Slide"],
    },
)
del lazy_loader
