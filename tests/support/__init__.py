"""Shared parts of tests: real models, servers, users and clusters, and the functions that run the programs."""
