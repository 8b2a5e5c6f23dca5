"""What ``logd bench`` runs: workloads, the meter they are measured with, and the report."""
