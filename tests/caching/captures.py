"""Folders as DistillKit writes them, every byte made by hand."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from limbeck.caching.sketch.distillkit import SETTINGS

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.uint64())),
        ("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
        ("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
    ]
)


def bits_of(numbers, width):
    """Whole numbers as a string of bits, the highest first, in bytes: written out."""
    text = "".join(format(int(n), f"0{width}b") for n in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def bytes_of(numbers, dtype):
    return torch.tensor(numbers, dtype=dtype).view(torch.uint8).tolist()


def capture(folder, model, texts, k=8, per_file=3):
    """What a model says of texts (lists of tokens): the k most probable classes of each token but the first, exactly."""
    folder.mkdir(parents=True)
    rows = []
    for text in texts:
        with torch.no_grad():
            log_p = model(torch.tensor([text]))[0, :-1].log_softmax(-1).float()
        top = log_p.topk(k, dim=-1)
        row = {
            "input_ids": text,
            "compressed_logprobs": [bytes_of(values.tolist(), torch.float32) for values in top.values],
            "bytepacked_indices": [bits_of(ids.tolist(), (log_p.shape[-1] - 1).bit_length()) for ids in top.indices],
        }
        rows.append(row)
    how = {"d": log_p.shape[-1], "k": k, "exact_k": k, "exact_dtype": "float32", "delta_encoding": False}
    (folder / SETTINGS).write_text(json.dumps(how))
    for number, low in enumerate(range(0, len(rows), per_file)):
        table = pa.Table.from_pylist(rows[low : low + per_file], schema=SCHEMA)
        pq.write_table(table, folder / f"data_{number}.parquet")
    return folder
