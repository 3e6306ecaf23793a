"""An evaluation that several processes split."""

from pathlib import Path


def results(output: Path) -> dict[str, bytes]:
    """The results and samples, after a check that no other files are left."""
    folder = output / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == [
        "sample.json",
        "sample.manifest.json",
        "sample_samples.jsonl",
    ]
    return {name: (folder / name).read_bytes() for name in ("sample.json", "sample_samples.jsonl")}
