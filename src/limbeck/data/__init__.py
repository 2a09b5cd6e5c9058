"""One's own data: from files, folders and Datasets to checked rows and batches."""

from limbeck.data.columns import Array, Audio, Image, Label, Number, Text
from limbeck.data.load import load_data
from limbeck.data.tensors import Batch, Data

__all__ = ["Array", "Audio", "Batch", "Data", "Image", "Label", "Number", "Text", "load_data"]
