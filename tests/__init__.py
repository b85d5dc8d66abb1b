"""Tests; run them with ``python -m twisted.trial tests``."""

import os

from tests import chance as chance  # How often chance is asked holds for all of them.

# Clients that are turned away, as tests want them to be, would each put three lines on the terminal.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
