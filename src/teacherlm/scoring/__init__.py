"""The stage that scores models on tasks: task files, batches of requests, choices and results.

The room is not called `evaluate`, because that is the name of a library.
"""
