"""Download a released checkpoint of ATLAS: model.pth.tar, which train.py and evaluate.py take as --model_path."""

from teacherlm.core.errors import run
from teacherlm.atlas.download_model import main

if __name__ == "__main__":
    run(main)
