"""Locks, elections, membership, work distribution and keys, on the coordination log.

Reached through the client: ``client.lock(...)``, ``client.election(...)`` and so on; what each
of them guarantees, and does not, is told in docs/coordination.md.
"""
