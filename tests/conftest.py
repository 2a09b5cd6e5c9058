"""Settings that all tests share."""

import os

from hypothesis import settings

# A busy machine is not a fault, so there is no deadline; in CI the same examples are drawn every time, so that a
# change is judged by what it changes. Elsewhere every run looks at new ones.
settings.register_profile("limbeck", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("limbeck")
