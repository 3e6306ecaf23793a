"""Download a released checkpoint of ATLAS: model.pth.tar, which train.py and evaluate.py take as --model_path."""

from teacherlm.atlas.download_model import main
from teacherlm.core.programs import run

if __name__ == "__main__":
    run(main)
