"""The consensus core: pure, one instance per Raft group."""
