"""Pickles that run code."""

import os
from pathlib import Path


class Evil:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)
