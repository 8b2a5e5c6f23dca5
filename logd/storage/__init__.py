"""What a broker keeps on disk: logs, hard state, checkpoints, and the directory they lie in.

Everything here blocks and nothing here waits: no task, no clock, no chance.  All access to
names and bytes goes through ``logd.env.FileSystem``, so that the power can be cut between
any two system calls in a test.  The bytes are described in segment_format.md.
"""
