"""Download a published index of Wikipedia: passages and embeddings in 128 shards, for --load_index_path."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("atlas.download_index")
