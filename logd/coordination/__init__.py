"""The replicated state machine of one partition of ``__coordination``.  Pure."""
