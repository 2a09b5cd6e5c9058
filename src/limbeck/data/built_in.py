"""Data sets that come with the package, by their short names."""

from __future__ import annotations

BUILT_IN = {
    "av-digits": "limbeck.data.av_digits:av_digits",
    "av-mnist": "limbeck.data.av_mnist:av_mnist",
    "utd-mhad": "limbeck.data.utd_mhad:utd_mhad",
}
