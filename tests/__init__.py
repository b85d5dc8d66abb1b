"""Tests; run them with ``python -m twisted.trial tests``."""
