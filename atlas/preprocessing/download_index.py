"""Download a published index of Wikipedia: passages and embeddings in 128 shards, for --load_index_path."""

from teacherlm.core.errors import run
from teacherlm.atlas.download_index import main

if __name__ == "__main__":
    run(main)
