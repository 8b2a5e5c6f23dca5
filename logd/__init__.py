"""logd: a replicated, append-only, distributed log.

The assertions in this code are its invariants, executed; running without them would be
running a different program, so ``python -O`` is refused.
"""

from __future__ import annotations

if not __debug__:  # pragma: no cover - only reachable under python -O
    raise SystemExit("logd checks its invariants while it runs: start it without -O")

__version__ = "0.1.0"
