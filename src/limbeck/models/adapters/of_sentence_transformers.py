"""sentence-transformers: a folder with `modules.json` as a network that gives one embedding per text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.models.adapters.columns import column_of
from limbeck.sources import Source


class SentenceEmbedder(nn.Module):
    """A SentenceTransformer that is called with tokens: `embedding` is the sentence's, `hidden` those of its tokens."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Int[Tensor, "batch tokens"]
    ) -> dict[str, Float[Tensor, "batch ..."]]:
        """All modules of the pipeline in turn (transformer, pooling, projection, normalisation)."""
        found = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
        return {"embedding": found["sentence_embedding"], "hidden": found["token_embeddings"]}


def read(place: str | Path, whose: str, args: dict[str, Any]) -> Source:
    """The folder's pipeline; arguments go to SentenceTransformer.

    Raises:
        RecipeError: sentence-transformers is missing, or cannot read the folder.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{whose}.model {place} is a sentence-transformers folder (modules.json): pip install 'limbeck[embeddings]'"
        ) from error
    try:
        model = SentenceTransformer(str(place), device="cpu", **args)
    except (OSError, ValueError, TypeError, ImportError, AttributeError) as error:
        raise RecipeError(f"{whose}.model {place}: sentence-transformers cannot read it: {error}") from error
    longest = model.max_seq_length

    def view_for(columns: Iterable[str]) -> Any:
        column = column_of(columns, "text")
        if column is None:
            return None
        mask, origin = f"{column}_mask", _tokenizer(Path(place))
        tokens = {"use": "tokenise", "key": column, "tokenizer": origin, "mask": mask, "longest": longest}
        return {"named": {"input_ids": column, "attention_mask": mask}, "transforms": [tokens]}

    spec = {"model": str(place), **({"args": dict(args)} if args else {})}
    return Source(SentenceEmbedder(model), spec, Path(place).resolve(), view_for=view_for)


def _tokenizer(folder: Path) -> str:
    """Where the tokenizer's files lie: beside `modules.json`, or in the first module's folder."""
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    return str(next((p for p in places if (p / "tokenizer_config.json").exists()), folder))
