"""Docks of the napari plugin; importing this package loads neither Qt nor torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_batch": ["BatchWidget"],
        "_classify": ["ClassifyWidget"],
        "_crop": ["CropWidget"],
        "_differential": ["DifferentialWidget"],
        "_gallery": ["GalleryWidget"],
        "_segment": ["SegmentWidget"],
        "_train": ["TrainWidget"],
    },
)
del lazy_loader
