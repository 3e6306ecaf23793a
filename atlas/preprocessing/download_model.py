"""Download a released checkpoint of ATLAS: model.pth.tar, which train.py and evaluate.py take as --model_path."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("atlas.download_model")
