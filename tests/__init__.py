"""Tests; run them with ``python -m twisted.trial tests``."""

from tests import chance as chance  # How often chance is asked holds for all of them.
