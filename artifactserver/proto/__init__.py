"""The messages that are spoken and stored, as ``.proto`` files of our own, and what protoc makes of them.

Packages, names and numbers are those of the public interfaces, so every client understands them; messages and fields
that nothing here uses are left out, and are carried or skipped as unknown fields.  The generated modules are
committed: ``tox -e proto`` (which runs ``generate.py``) makes them again, with one pinned protoc.
"""
