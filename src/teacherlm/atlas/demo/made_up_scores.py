"""Print the results of demo.sh: for each run, the accuracy on unseen places, and how often the passage with the answer
was retrieved first."""

from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.flags import Parser
from teacherlm.core.manifests import manifest_of, read_manifest
from teacherlm.core.tables import table

RUNS = {
    "closed-book": "closed book",
    "given": "the right passage given",
    "retrieved": "retrieved",
    "retriever-learns": "retrieved, the retriever trained too",
}


def main() -> None:
    parser = Parser(description=__doc__, epilog="example: teacherlm made-up-scores runs/atlas-demo")
    parser.add_argument("folder", type=Path, help="the folder of the demo")
    folder = parser.parse_args().folder
    rows = [("", "accuracy", "recall@1")]
    for name, title in RUNS.items():
        results = sorted((folder / name).glob("test-step-*.jsonl"), key=lambda file: int(file.stem.rsplit("-", 1)[1]))
        if not results:
            raise UserError(f"{folder / name}: no predictions for the test there; run demo.sh to its end")
        counts = read_manifest(manifest_of(results[-1]))["counts"]
        recall = f"{counts['recall@1']:.1f}" if "recall@1" in counts else "-"
        rows.append((title, f"{counts['debiased_accuracy']:.1f}", recall))
    print(table(rows))
    print(f"\nin percent of {counts['questions']} questions about places that are not in training; chance is 25")
