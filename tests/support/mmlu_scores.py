"""The scorer of predictions."""

from support.programs import ROOT

SCRIPT = ROOT / "atlas" / "evaluation_scripts" / "evaluate_mmlu_predictions.py"
