"""Configuration of the documentation: ``python -m sphinx -W docs docs/_build/html``."""

import os
from importlib.metadata import version as installed_version

# Gallery scripts run in this process: without a screen, and with one order of everything.
os.environ["MPLBACKEND"] = "Agg"

project = "sknsgf"
author = "The sknsgf developers"
copyright = "2026, the sknsgf developers"
version = release = installed_version("sknsgf")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # formulas are shown without a network
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say it
numpydoc_show_class_members = False  # the templates list them
add_module_names = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    # A part of the gallery only: -D sphinx_gallery_conf.filename_pattern=plot_first_flow
    "filename_pattern": r"/(plot_|quickstart)",
    "within_subsection_order": "ExampleTitleSortKey",
    "doc_module": "sknsgf",
    "backreferences_dir": "generated/backreferences",
    "abort_on_example_error": True,
    "plot_gallery": "True",
    "show_memory": False,
    "min_reported_time": 1,
    "download_all_examples": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "sknsgf"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "tango",
}
# Pages without pages below them need no room for their list.
PAGES_ALONE = ["index", "installation", "tutorial", "benchmarks", "coming_from", "glossary"]
html_sidebars = {page: [] for page in [*PAGES_ALONE, "changelog"]}
