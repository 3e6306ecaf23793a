"""Models are scored on tasks: task files, requests in batches, the choice of each sample, results. (`evaluate` is a library.)"""
