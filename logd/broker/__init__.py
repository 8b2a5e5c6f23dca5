"""The running server: listeners, sessions, metadata, partitions."""
