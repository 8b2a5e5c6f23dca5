"""What a replica knows of its log besides the batches themselves.  Pure."""
