"""Coverage-guided fuzzing: each module is a target, whose `run` takes any bytes and checks what comes of them.

``python -m fuzz`` runs one with atheris; README.rst says how.  The targets themselves need no atheris, and
``tests/test_fuzz.py`` runs each for a moment.
"""
