"""Record batches: the same bytes from the producer's memory to every disk to the consumer's.

    header.py   the 128 bytes in front of every batch, with both checksums
    payload.py  the columns behind it, and compression
    batch.py    sealing and decoding whole batches
    control.py  what the log says to itself

Normative format: segment_format.md.  Pure: no I/O, clock, chance, task or thread; shared by
the broker and the client.
"""
