"""Benchmarks, each beside its bound and what it is compared with; `nox -s bench` runs them and prints the table.

In the ordinary tests they run one tiny round each and judge no time: that shows that they work.
"""
