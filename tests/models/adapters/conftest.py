"""The fixtures of tiny saved models; their makers can be imported from `saved_models`."""

import pytest

pytest.importorskip("transformers")
from saved_models import _one_thread, bert, resnet, vit

__all__ = ["_one_thread", "bert", "resnet", "vit"]
