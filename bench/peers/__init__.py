"""The same workload on other logs, in the same run, with what each promises said plainly."""
