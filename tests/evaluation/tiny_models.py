"""The tiny Stable Diffusion, its photos and the tiny CLIP of the examples, loaded by path."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "tiny_diffusion_models", Path(__file__).parents[2] / "examples" / "tiny_diffusion_models.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
TINY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(TINY)


def clip(folder):
    """A tiny CLIP with its tokenizer in a folder."""
    tokens = TINY.tokenizer(folder / "tokenizer")
    TINY.save_clip(TINY.clip(tokens), tokens, folder / "clip")
    return folder / "clip"
