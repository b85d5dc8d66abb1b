"""How the documentation is built: ``python -m sphinx -W -n -b html docs OUTPUT``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from artifactserver import __version__

project = "artifactserver"
author = "The artifactserver developers"
version = release = __version__

html_theme = "alabaster"
html_static_path = ["_static"]
html_theme_options = {"description": "A build-artifact server on Twisted"}
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
exclude_patterns = ["_build"]
# The pages are read more often as they stand here than as HTML: quotes and dashes stay as they were typed.
smartquotes = False
