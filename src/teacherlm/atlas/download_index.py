"""Download a published index of Wikipedia: passages and embeddings in 128 shards, for --load_index_path."""

from pathlib import Path

from teacherlm.atlas.downloads import BASE_URL, fetch_all
from teacherlm.core.flags import Parser

SIZES = ("base", "large", "xl", "xxl")
INDICES = [f"indices/{kind}/wiki/{size}" for kind in ("atlas", "atlas_nq") for size in SIZES]
SHARDS = 128


def main() -> None:
    parser = Parser(description=__doc__)
    # The reference's documentation says --model where its code says --index.
    parser.add_argument("--index", "--model", required=True, choices=INDICES, metavar="NAME", help=", ".join(INDICES))
    parser.add_argument("--output_directory", type=Path, default=Path("data"))
    parser.add_argument("--base_url", default=BASE_URL, help=f"of a mirror (default: {BASE_URL})")
    args = parser.parse_args()
    kinds = ("passages", "embeddings")
    names = [f"{args.index}/{kind}.{shard}.pt" for shard in range(SHARDS) for kind in kinds]
    fetch_all(args.base_url, names, args.output_directory)
