"""What two or more stages of the TeacherLM pipeline share, and nothing else."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the project: benchmarks/, models/ and the stages lie in it."""
