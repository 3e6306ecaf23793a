"""Download a published index of Wikipedia: passages and embeddings in 128 shards, for --load_index_path."""

from teacherlm.atlas.download_index import main
from teacherlm.core.programs import run

if __name__ == "__main__":
    run(main)
