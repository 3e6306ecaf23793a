"""The share of a training set in an epoch, as TRAIN of a chain and --dataset_name of finetune.py write it.

It is the number of times that an epoch has each sample (`0.5`, `2`), or the maximum number of samples that an epoch has
(`max1000`). The chain imports this module, also in a Python without packages.
"""

import re

MAXIMUM = "max"
SHARE = re.compile(MAXIMUM + r"[1-9][0-9]{0,11}|[0-9]{1,6}(\.[0-9]{1,9})?")
EXPECTED = "neither a number above 0 nor maxN"


def is_share(text: str) -> bool:
    """Whether a text is a share. An epoch would have no samples with a share of 0."""
    return SHARE.fullmatch(text) is not None and text.strip("0.") != ""
