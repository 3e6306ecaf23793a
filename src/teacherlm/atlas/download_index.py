"""Download a published index of Wikipedia: passages and embeddings in 128 shards, for --load_index_path."""

from dataclasses import dataclass
from pathlib import Path

from teacherlm.atlas.downloads import BASE_URL, fetch_all
from teacherlm.core.flags import flag, parse

SIZES = ("base", "large", "xl", "xxl")
INDICES = [f"indices/{kind}/wiki/{size}" for kind in ("atlas", "atlas_nq") for size in SIZES]
SHARDS = 128


@dataclass(frozen=True)
class IndexFlags:
    """Which index is downloaded, and where it is written."""

    # The reference's code has the flag --index, but its documentation calls it --model.
    index: str = flag(
        spelled=("--index", "--model"), choices=INDICES, metavar="NAME", help=f"the index: {', '.join(INDICES)}"
    )
    output_directory: Path = flag(Path("data"), help="the folder to write to (default: data)")
    base_url: str = flag(BASE_URL, help=f"the server, or a mirror of it (default: {BASE_URL})")


def main() -> None:
    flags = parse(
        IndexFlags, __doc__, example="teacherlm download-index --index indices/atlas/wiki/base --output_directory data"
    )
    kinds = ("passages", "embeddings")
    names = [f"{flags.index}/{kind}.{shard}.pt" for shard in range(SHARDS) for kind in kinds]
    fetch_all(flags.base_url, names, flags.output_directory)
