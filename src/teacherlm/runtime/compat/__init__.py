"""Every use of a library's private interface, in one file per library. test_compat.py fails when a library changes.

A name is private if it has a leading underscore, or if the library's documentation does not mention it: internal
modules, undocumented attributes, and methods that are replaced from outside. Each file says why no public interface
serves the purpose, and which versions of the library it was written for.
"""
