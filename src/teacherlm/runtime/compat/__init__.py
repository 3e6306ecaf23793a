"""Every use of a library's private interface, one file a library; test_compat.py fails when the library changes.

Private is what has a leading underscore, and what a library's documentation does not name although other code can reach
it: internal modules, attributes, and methods that are replaced from outside. A file says for each use why there is no
public interface for it, and which versions it was written for.
"""
