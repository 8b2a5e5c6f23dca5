"""The real machine behind the seam of ``logd.env``: sockets, files, threads and clock."""
