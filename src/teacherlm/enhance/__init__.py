"""The stage in which the teacher writes: jobs and their progress, merging of shards, and engines."""
