"""Whole-job benchmarks: mailboat beside a bare reference that does the same work, in the same run.

``make bench`` runs them all, ``python -m bench --help`` tells what can be chosen. Machines are shared and noisy, so
what is reported is never a time alone but the ratio to the reference, taken pair by pair (see `harness`). Figures of
one machine are kept in ``RESULTS.md``; no test asserts a time.
"""
