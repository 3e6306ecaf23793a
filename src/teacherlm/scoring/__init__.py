"""Models are scored on tasks: task files, requests in batches, choices, results. (`evaluate` is a library's name.)"""
