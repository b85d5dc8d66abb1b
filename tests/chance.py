"""How often chance is asked.

The suite draws a bounded number of examples, the same ones each time: a test that fails says something about the
change, and not about the day.  With ``ARTIFACTSERVER_TEST_FUZZ=N`` in the environment every test draws N times as many,
other ones each time: that is for runs by hand.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

MULTIPLIER = "ARTIFACTSERVER_TEST_FUZZ"

#: How many times as many examples as usual.
_times = int(os.environ.get(MULTIPLIER, "0"))


def examples(number: int, **more: Any) -> settings:
    """Hypothesis' settings for a test that usually draws so many examples.

    A machine that is busy with something else is no reason to fail, so there is no deadline.
    """
    return settings(
        max_examples=number * max(1, _times),
        derandomize=not _times,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **more,
    )


# Tests that say nothing of how many.
settings.register_profile("artifactserver", examples(100))
settings.load_profile("artifactserver")
