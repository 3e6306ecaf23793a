"""Download a released checkpoint of ATLAS: model.pth.tar, which train.py and evaluate.py take as --model_path."""

from dataclasses import dataclass
from pathlib import Path

from teacherlm.atlas.downloads import BASE_URL, fetch_all
from teacherlm.core.flags import flag, parse

SIZES = ("base", "large", "xl", "xxl")
MODELS = [f"models/{kind}/{size}" for kind in ("atlas", "atlas_nq") for size in SIZES]


@dataclass(frozen=True)
class ModelFlags:
    """Which checkpoint is downloaded, and where it is written."""

    model: str = flag(choices=MODELS, metavar="NAME", help=f"the checkpoint: {', '.join(MODELS)}")
    output_directory: Path = flag(Path("data"), help="the folder to write to (default: data)")
    base_url: str = flag(BASE_URL, help=f"the server, or a mirror of it (default: {BASE_URL})")


def main() -> None:
    flags = parse(
        ModelFlags, __doc__, example="teacherlm download-model --model models/atlas/base --output_directory data"
    )
    fetch_all(flags.base_url, [f"{flags.model}/model.pth.tar"], flags.output_directory)
