"""Download a released checkpoint of ATLAS: model.pth.tar, which train.py and evaluate.py take as --model_path."""

from pathlib import Path

from teacherlm.atlas.downloads import BASE_URL, fetch_all
from teacherlm.core.flags import Parser

SIZES = ("base", "large", "xl", "xxl")
MODELS = [f"models/{kind}/{size}" for kind in ("atlas", "atlas_nq") for size in SIZES]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, choices=MODELS, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--output_directory", type=Path, default=Path("data"))
    parser.add_argument("--base_url", default=BASE_URL, help=f"of a mirror (default: {BASE_URL})")
    args = parser.parse_args()
    fetch_all(args.base_url, [f"{args.model}/model.pth.tar"], args.output_directory)
