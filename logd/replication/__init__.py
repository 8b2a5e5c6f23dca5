"""Joins the consensus core, the log and the wire: one group per partition, one node per process."""
