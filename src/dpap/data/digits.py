"""The digits set inside the package: 1,797 handwritten digits of 8 x 8 pixels. Source and licence: `digits.txt`."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch

from dpap.data.spec import Dataset, DataSpec, Split

SPEC = DataSpec(
    name="digits",
    shape=(1, 8, 8),
    classes=tuple("0123456789"),
    credit="Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, CC BY 4.0",
)


def load_digits() -> Dataset:
    """1,078 training, 269 validation and 450 test images in [0, 1]; the split is fixed and stratified."""
    with files("dpap.data").joinpath("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays["images"]).unsqueeze(1).float() / 16
        labels = torch.from_numpy(arrays["labels"]).long()
        split = torch.from_numpy(arrays["split"])

    def part(number: int) -> Split:
        return Split(images=images[split == number], labels=labels[split == number])

    return Dataset(spec=SPEC, train=part(0), validation=part(1), test=part(2))
