"""Sphinx configuration."""

from importlib.metadata import version as installed_version

project = "napari-wbc"
author = "napari-wbc developers"
copyright = "2026, napari-wbc developers"  # noqa: A001
release = installed_version("napari-wbc")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
exclude_patterns = ["_build", "quality_table.md", "recipes_table.md", "evaluate_table.md"]
html_theme = "furo"
html_title = "napari-wbc"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
