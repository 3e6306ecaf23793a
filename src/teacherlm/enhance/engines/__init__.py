"""Engines for teachers that do not run within this process, beside those of runtime/generation/, which do.

served_engine   the teacher is behind a server that the command starts and ends
openai_engine   the teacher is behind another OpenAI-compatible server
field_engine    people wrote the explanations; they are in a field of the records

runtime/generation/__init__.py has the types that all engines use. CONTRIBUTING.md has the steps to add one.
"""
