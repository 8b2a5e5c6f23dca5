"""The command that ``logd queue work`` runs for one item.

Its exit code decides what becomes of the item; what it reads and writes decides nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from logd.cli.display import say
from logd.cli.holding import TERM_SHARE, run_for_input
from logd.cli.options import DEFAULT_TTL_S
from logd.limits import KIB
from logd_client.coordination.queues import ItemFailedError

if TYPE_CHECKING:
    from logd_client.coordination.queues import Claim

LAST_WORDS_BYTES: Final = 4 * KIB
"""Of what a command that failed has written to standard error; its last line is the reason."""


async def run_for(
    claim: Claim,
    command: Sequence[str],
    name: str,
    bootstrap: str,
    ttl_s: float = DEFAULT_TTL_S,
) -> None:
    """Run ``command`` for one item of queue ``name``; cancelled, it is ended, and what it was ended
    with decides: if it is code 0, there was no cancellation.

    Raises:
        ItemFailedError: it ended with another code than 0, or could not be started.
    """
    environment = {
        "LOGD_BOOTSTRAP": bootstrap,
        "LOGD_QUEUE": name,
        "LOGD_ITEM": str(claim.id),
        "LOGD_KEY": claim.key.decode(errors="backslashreplace"),
        "LOGD_ATTEMPT": str(claim.attempt),
        "LOGD_FENCE_ID": str(claim.fence.id),
        "LOGD_FENCE_TOKEN": str(claim.token),
        "LOGD_FENCE": f"{claim.fence.id}:{claim.token}",
    }
    # Not pipes.  How much of its payload the command reads is its own affair, and what is
    # written to a pipe that nobody reads is an error.  And what it leaves running may keep its
    # standard error open for as long as it likes.
    with tempfile.TemporaryFile() as payload, tempfile.TemporaryFile() as told:
        payload.write(claim.payload)
        payload.seek(0)
        lasts_s = min(ttl_s, claim.visibility_s or ttl_s)
        grace_s = lasts_s * TERM_SHARE
        try:
            code = await run_for_input(command, environment, grace_s, stdin=payload, stderr=told)
        except OSError as error:
            say(f"logd: {command[0]}: {error.strerror}")
            raise ItemFailedError(f"{command[0]}: {error.strerror}") from error
        finally:
            told.seek(0)
            # That nobody hears it is no failure of the item, which would be worked on again.
            with suppress(OSError):
                shutil.copyfileobj(told, sys.stderr.buffer)
                sys.stderr.flush()
        told.seek(max(0, told.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
        said = told.read(LAST_WORDS_BYTES)
    if code:
        last_words = said.decode(errors="replace").strip().splitlines()[-1:]
        raise ItemFailedError(" ".join([_ending_text(code), *last_words]))


def _ending_text(code: int) -> str:
    """How a command ended that has failed, by what its parent was told."""
    if code > 0:
        return f"code {code}"
    with suppress(ValueError):  # Real-time signals have no names.
        return f"ended by {signal.Signals(-code).name}"
    return f"ended by signal {-code}"
