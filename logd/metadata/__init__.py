"""The metadata log's replicated state machine: brokers, topics, placement.  Pure."""
