"""Coordination on one broker: the partitions of ``__coordination`` that it holds.

``logd.coordination`` says what a command does; this folder brings commands into the log, feeds
every replica from it, and answers those who wait.
"""
