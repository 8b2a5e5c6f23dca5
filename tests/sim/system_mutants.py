"""Deliberate breakages of everything around the consensus core, each to be noticed by a test.

The promise is one of P1 to P7 (docs/failure_model.md).
"""

from __future__ import annotations

from tests.spec.mutants import Mutant

SYSTEM_MUTANTS = (
    # --- storage ------------------------------------------------------------------------------
    Mutant(
        "a sync does not sync",
        "P1",
        "logd/storage/log.py",
        "            self._allocate_ahead(file, end.position)\n            file.sync()\n",
        "            self._allocate_ahead(file, end.position)\n",
    ),
    Mutant(
        "a failed sync counts as one",
        "P1: never trust a disk after an error",
        "logd/storage/log.py",
        '            raise self._fail("sync", error) from error\n        finally:\n'
        "            self._is_syncing = False",
        "            del error\n        finally:\n            self._is_syncing = False",
    ),
    Mutant(
        "the mark claims the sync that is under way",
        "P1: a torn tail is not damage",
        "logd/storage/log.py",
        "mark = self._next_mark(self._synced, commit_offset)",
        "mark = self._next_mark(end, commit_offset)",
    ),
    Mutant(
        "recovery trusts the page cache after a failed sync",
        "P1",
        "logd/storage/log.py",
        "        _write_again(file, marked.end_position, self._end.position)\n",
        "",
    ),
    Mutant(
        "a torn tail is not cut off",
        "P2: what follows a torn batch is never read",
        "logd/storage/recovery.py",
        "if not report.is_damaged and file.size() > end.position:",
        "if False:",
    ),
    Mutant(
        "a truncation is not synced",
        "P2",
        "logd/storage/log.py",
        "        file.truncate(position)\n        file.sync()\n        self._allocated = position",
        "        file.truncate(position)\n        self._allocated = position",
    ),
    Mutant(
        "a truncation does not lower the mark",
        "P1: a cut is not damage",
        "logd/storage/log.py",
        "if self._mark.end_offset > offset:",
        "if False:",
    ),
    Mutant(
        "a vote is not synced",
        "P2: one leader per term",
        "logd/storage/hard_state.py",
        "SLOT_POSITIONS[state.sequence % 2])\n            file.sync()",
        "SLOT_POSITIONS[state.sequence % 2])",
    ),
    Mutant(
        "of two votes the older one is believed",
        "P2: one leader per term",
        "logd/storage/hard_state.py",
        "max(slots, key=lambda state: state.sequence)",
        "min(slots, key=lambda state: state.sequence)",
    ),
    Mutant(
        "a new file's name is not made durable",
        "P1",
        "logd/storage/whole_file.py",
        "    files.rename(unfinished, path)\n    files.sync_directory(parent(path))\n",
        "    files.rename(unfinished, path)\n",
    ),
    Mutant(
        "a checkpoint from beyond the log is loaded",
        "P4: state of what was truncated",
        "logd/storage/checkpoint.py",
        "if at_most is not None and offset > at_most:",
        "if False:",
    ),
    Mutant(
        "a batch is read without checking its seal",
        "P5",
        "logd/storage/batch_read.py",
        "    check_seal(path, batch, at)\n",
        "",
    ),
    # --- partition state ----------------------------------------------------------------------
    Mutant(
        "a retry is stored again",
        "P4",
        "logd/partition/producers.py",
        "            if base_sequence == known.next_sequence:\n                return None\n",
        "            return None\n",
    ),
    # --- replication --------------------------------------------------------------------------
    Mutant(
        "a vote is not saved",
        "P2: one leader per term",
        "logd/replication/group.py",
        "                if output.persist is not None and self.failure is None:\n"
        "                    await self._persist(output.persist)\n",
        "",
    ),
    Mutant(
        "an append is acknowledged before it is committed",
        "P1",
        "logd/replication/group.py",
        "                self._waiting.append(proposal)\n",
        "                proposal.finish(proposal.placed)\n",
    ),
    Mutant(
        "a duplicate is acknowledged before the original is committed",
        "P1",
        "logd/replication/group.py",
        "        if proposal.placed.end_offset <= self.commit_offset:\n"
        "            proposal.finish(proposal.placed)\n        else:",
        "        if True:\n            proposal.finish(proposal.placed)\n        else:",
    ),
    Mutant(
        "readers are given what is not committed",
        "P2",
        "logd/replication/group.py",
        "        end = self.commit_offset\n        if offset >= end:",
        "        end = self.log.end_offset\n        if offset >= end:",
    ),
    Mutant(
        "a deposed leader's pending appends are refused for certain",
        "P3",
        "logd/replication/group.py",
        "        return LeadershipLostError(\n",
        "        return NotLeaderError(\n",
    ),
    Mutant(
        "an append whose time is up is refused for certain",
        "P3",
        "logd/replication/group.py",
        "                    RequestTimeoutError(\n",
        "                    UnavailableError(\n",
    ),
    Mutant(
        "a conditional append is refused on an uncommitted log",
        "P3: refusals are judged on what is committed",
        "logd/replication/group.py",
        "            self._refuse_honestly(proposal, error)",
        "            proposal.finish(error)",
    ),
    Mutant(
        "a conditional append is not judged",
        "P3: one winner per expected offset",
        "logd/replication/group.py",
        "if expected is not None and not state.data_end <= expected <= state.end_offset:",
        "if False:",
    ),
    Mutant(
        "what was truncated stays in the derived state",
        "P4",
        "logd/replication/group.py",
        "        self.state = await self._host.env.run_blocking(self._opened.replay_state)\n",
        "",
    ),
    Mutant(
        "the append time is whatever the clock says",
        "append time never goes back",
        "logd/replication/group.py",
        "        return max(self._log_time_base_ms + self._host.now_ms(), "
        "self.state.last_append_time_ms)",
        "        return self._host.env.wall_clock_ms()",
    ),
    Mutant(
        "a log that has lost votes is opened",
        "P2: one leader per term",
        "logd/replication/opening.py",
        "if terms and terms[-1][0] > term:",
        "if False:",
    ),
    Mutant(
        "a peer that is silent counts as alive",
        "liveness: a new leader in bounded time",
        "logd/replication/failure_detector.py",
        "if peer.is_up and now_ms - peer.heard_ms >= self._timeout_ms:",
        "if False:",
    ),
    Mutant(
        "a follower that lost its connection is not probed again",
        "liveness: a follower catches up",
        "logd/replication/node.py",
        "        self._post_to_shared(node, PeerConnected(node))\n",
        "",
    ),
    Mutant(
        "brokers never compare what they believe about leaders",
        "liveness: a new leader in bounded time",
        "logd/replication/node.py",
        "            if trio.current_time() >= compare_at and not self._claims_dirty:\n",
        "            if False:\n",
    ),
    Mutant(
        "whoever waits for a log that failed is not answered",
        "P3",
        "logd/replication/group.py",
        "        self.failure = error\n        self._stop()\n",
        "        self.failure = error\n",
    ),
    Mutant(
        "a leader whose log failed does not resign",
        "P1: a write error stops the log",
        "logd/replication/group.py",
        "        self.core.step(Resign(may_campaign=False), self._host.now_ms())\n"
        "        self.failure = error\n",
        "        self.failure = error\n",
    ),
    # --- the broker ---------------------------------------------------------------------------
    Mutant(
        "a leader serves before its no-op is committed",
        "P2",
        "logd/broker/broker.py",
        "if not found.is_ready:",
        "if False:",
    ),
    Mutant(
        "replicas are made and thrown away by metadata from before the restart",
        "P2: a vote outlives its replica",
        "logd/broker/partitions.py",
        "            may_change = self._is_up_to_date\n",
        "            may_change = True\n",
    ),
    Mutant(
        "a subscription skips a batch when it was slow",
        "P2: nothing is left out",
        "logd/broker/subscriptions.py",
        "        subscription.position = found.end_offset\n",
        "        subscription.position = max(found.end_offset, group.commit_offset)\n",
    ),
    Mutant(
        "a subscriber is not woken by commits",
        "liveness: consumers go on",
        "logd/broker/subscriptions.py",
        "    def on_commit(self, commit_offset: Offset) -> None:\n        self.owner.wake(self)",
        "    def on_commit(self, commit_offset: Offset) -> None:\n        pass",
    ),
    Mutant(
        "any replica answers for its leader",
        "P2: a read after an append sees it",
        "logd/broker/subscriptions.py",
        "if any_replica else broker.leading_group(group_id)",
        "if any_replica else broker.group(group_id)",
    ),
    # --- the client ---------------------------------------------------------------------------
    Mutant(
        "the epoch is raised while batches may be stored",
        "P4",
        "client/logd_client/pipeline.py",
        "if self._hole is None or not all(map(self._is_behind_hole, self._unresolved)):",
        "if self._hole is None:",
    ),
    Mutant(
        "a batch whose connection was lost counts as not stored",
        "P3",
        "client/logd_client/pipeline.py",
        "            batch.is_in_doubt = batch.is_in_doubt or batch.is_outstanding\n"
        "            batch.is_outstanding = False",
        "            batch.is_outstanding = False",
    ),
    Mutant(
        "a doubtful refusal counts as certain",
        "P3",
        "client/logd_client/pipeline.py",
        "        if error.may_have_applied:\n            batch.is_in_doubt = True",
        "        if False:\n            batch.is_in_doubt = True",
    ),
    Mutant(
        "a batch out when its time is up counts as not stored",
        "P3",
        "client/logd_client/pipeline.py",
        "            is_in_doubt = batch.is_in_doubt or batch.is_outstanding\n"
        "            self._fail(batch, _expired(self.trouble, is_in_doubt))",
        "            is_in_doubt = batch.is_in_doubt\n"
        "            self._fail(batch, _expired(self.trouble, is_in_doubt))",
    ),
    Mutant(
        "all records of a batch are acknowledged at its base",
        "P1: at the offset acknowledged",
        "client/logd_client/delivery.py",
        "            response.base_offset + position,\n            response.append_time_ms,\n"
        "            response.durability,\n        )\n\n    def ack_range",
        "            response.base_offset,\n            response.append_time_ms,\n"
        "            response.durability,\n        )\n\n    def ack_range",
    ),
    Mutant(
        "a consumer takes deliveries of subscriptions that are over",
        "P2: each record once, in order",
        "client/logd_client/cursor.py",
        "if message.generation != self._generation or not self._is_subscribed:",
        "if False:",
    ),
    Mutant(
        "a consumer subscribes again from the beginning",
        "P2: each record once, in order",
        "client/logd_client/cursor.py",
        "        if self._fetch_position is not None:\n            kind, value",
        "        if False:\n            kind, value",
    ),
    Mutant(
        "a consumer never returns credit",
        "liveness: consumers go on",
        "client/logd_client/cursor.py",
        "        self._owed_bytes += self._in_use_bytes\n",
        "",
    ),
    # --- records and frames ---------------------------------------------------------------------
    Mutant(
        "a batch whose bytes changed is taken for sound",
        "P5",
        "logd/record/header.py",
        "    if actual != stored:\n",
        "    if False:\n",
    ),
    Mutant(
        "a batch of another group's log is taken for one of this",
        "P5: misdirected writes are found",
        "logd/record/header.py",
        "intdigest(memoryview(view)[CHECKED_POSITION:HEADER_BYTES], seed=group)",
        "intdigest(memoryview(view)[CHECKED_POSITION:HEADER_BYTES], seed=0)",
    ),
    Mutant(
        "a compressed payload unfolds to whatever it says",
        "P6",
        "logd/record/payload.py",
        "    if frame.content_size != decoded_bytes:\n",
        "    if False:\n",
    ),
    Mutant(
        "a frame may be as long as it says",
        "P6",
        "logd/wire/frame.py",
        "        if size > self.frame_bytes_max:\n",
        "        if False:\n",
    ),
    # --- repair ---------------------------------------------------------------------------------
    Mutant(
        "a hole is filled with bytes that nobody verified",
        "P5",
        "logd/storage/holes.py",
        "        verify_header(view, header, group)\n        verify_seal(view)\n        if header",
        "        if header",
    ),
    Mutant(
        "a hole is filled with batches of any term",
        "P5",
        "logd/storage/holes.py",
        "or not at.term <= header.term <= hole.end.term:\n"
        '            raise CorruptionError(\n                f"{hole}: offered',
        ':\n            raise CorruptionError(\n                f"{hole}: offered',
    ),
    Mutant(
        "a log that ends below its mark is opened",
        "P5: a replica with a hole does not vote",
        "logd/storage/recovery.py",
        "    if mark is not None and size >= mark.end_position:\n        marked",
        "    if mark is not None and size >= 0:\n        marked",
    ),
    Mutant(
        "damage above the commit offset is filled by peers",
        "P2: what is not committed cannot be judged",
        "logd/replication/repairer.py",
        "        if hole.end.offset > group.commit_offset:\n",
        "        if False:\n",
    ),
    Mutant(
        "what is not committed is given to those that repair",
        "P2",
        "logd/replication/repairer.py",
        "        if end > commit_offset:\n",
        "        if False:\n",
    ),
    Mutant(
        "a data directory of another node is taken",
        "P2: a vote is cast by one node",
        "logd/storage/directory.py",
        "    if header.identity.node != node_id:\n",
        "    if False:\n",
    ),
    # --- derived state --------------------------------------------------------------------------
    Mutant(
        "a producer of an earlier epoch is not fenced off",
        "P4",
        "logd/partition/producers.py",
        "if known is not None and epoch < known.epoch:",
        "if False:",
    ),
    Mutant(
        "a batch that leaves a gap is taken",
        "P4: batches of one producer keep their order",
        "logd/partition/producers.py",
        "        if base_sequence == 0:\n            return None\n        if known is None:",
        "        if True:\n            return None\n        if known is None:",
    ),
    Mutant(
        "a lock's former holder may write",
        "fences: who was replaced writes no more",
        "logd/partition/fences.py",
        "        elif token < newest:\n",
        "        elif False:\n",
    ),
    Mutant(
        "forgetting a fence opens it",
        "fences: who was replaced writes no more",
        "logd/partition/fences.py",
        "            self._floor = max(self._floor, forgotten)\n",
        "",
    ),
    Mutant(
        "group numbers are given out again",
        "P1: no topic is given another's log",
        "logd/metadata/state.py",
        "        self._next_group = GroupId(self._next_group + len(topic.partitions))\n",
        "",
    ),
    Mutant(
        "two replicas may lie on one broker",
        "P1: a majority of machines",
        "logd/metadata/placement.py",
        "            if load.node in chosen:\n                continue\n",
        "",
    ),
    Mutant(
        "a full disk goes on taking appends",
        "P1: a full disk costs no log",
        "logd/broker/disk_guard.py",
        "        if self.is_full:\n            raise",
        "        if False:\n            raise",
    ),
    Mutant(
        "a broker admits any number of bytes",
        "P6",
        "logd/broker/broker.py",
        "        while self._bytes >= self._bytes_max:\n",
        "        while False:\n",
    ),
    Mutant(
        "bytes that were refused count as held for ever",
        "P6",
        "logd/broker/broker.py",
        "        self._bytes -= count\n        assert self._bytes >= 0\n",
        "",
    ),
    # --- the client's bounds and order ------------------------------------------------------------
    Mutant(
        "what is sealed behind a failed batch overtakes it",
        "P4: batches of one producer keep their order",
        "client/logd_client/pipeline.py",
        "        if not self._queue or self._hole is not None:\n            return False\n",
        "        if not self._queue:\n            return False\n",
    ),
    Mutant(
        "a retry is sealed under a new sequence",
        "P4",
        "client/logd_client/pipeline.py",
        "            batch.data = _sealed_again(",
        "            batch.data = batch.data or _sealed_again(",
    ),
    Mutant(
        "a client's buffer takes everything",
        "P6",
        "client/logd_client/budget.py",
        "        if self._line or (self._used and self._used + size > self._total):\n"
        "            return False\n",
        "",
    ),
    Mutant(
        "an unknown refusal counts as certain",
        "P3",
        "client/logd_client/refusals.py",
        "    error.may_have_applied = response.may_have_applied\n",
        "    error.may_have_applied = False\n",
    ),
)
