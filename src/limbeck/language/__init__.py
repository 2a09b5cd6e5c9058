"""Language models: tokens as bytes, texts as batches, rollouts, and the alignment of two tokenizers."""
