"""How much work this server does for its CPU time, beside other servers under the same load.

``python -m benchmarks`` runs it; README.rst says how to have the other servers, and how to read the figures.
"""
