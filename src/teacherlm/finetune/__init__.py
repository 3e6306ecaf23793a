"""The stage in which the student learns: samples, collators, losses, the trainer, its checkpoints and its log."""
