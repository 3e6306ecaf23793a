"""Check the stages on this machine's GPU: the tests marked `gpu`, and a short measurement of each stage.

__main__.py    what `make check-gpu` starts
needs.py       what this machine lacks for it, in one line
outcomes.py    a plugin of pytest that writes each test's outcome down at once
run_tests.py   the tests, a process for each file, within a budget of time
figures.py     the measurements, a process for each stage, within a budget of time
stages.py      what is measured of each stage
report.py      the file for a bug report
"""
