"""Bytes from outside, as bad as they come, at every place that reads them."""
