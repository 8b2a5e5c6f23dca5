"""Deliberate breakages of the coordination state machine, each of which some test must notice."""

from __future__ import annotations

from tests.spec.mutants import Mutant

_STATE = "logd/coordination/state.py"
_SESSIONS = "logd/coordination/sessions.py"
_NAMESPACE = "logd/coordination/namespace.py"
_LOCKS = "logd/coordination/locks.py"
_KEYS = "logd/coordination/keys.py"
_MEMBERS = "logd/coordination/members.py"
_ASSIGNMENTS = "logd/coordination/assignments.py"
_SPREADING = "logd/coordination/spreading.py"
_QUEUES = "logd/coordination/queues.py"
_WORK = "logd/coordination/work.py"
_EVENTS = "logd/coordination/events.py"
_TIMERS = "logd/coordination/timers.py"

COORDINATION_MUTANTS = (
    Mutant(
        "a command that comes again is applied again",
        "a session's command takes effect once",
        _STATE,
        "        if earlier is not None:\n            return earlier\n",
        "",
    ),
    Mutant(
        "a command is applied again once its result was acknowledged",
        "a session's command takes effect once",
        _SESSIONS,
        "if known is None and sequence < self.acknowledged:",
        "if False:",
    ),
    Mutant(
        "what lies in the log is not checked",
        "a command makes sense, whoever proposed it",
        _STATE,
        "        if not is_checked:\n",
        "        if False:\n",
    ),
    Mutant(
        "results are kept without bound",
        "P6",
        _SESSIONS,
        "if len(self.results) >= RESULTS_PER_SESSION_MAX:",
        "if False:",
    ),
    Mutant(
        "results of a namespace are kept without bound",
        "P6",
        "logd/coordination/sessions.py",
        "        if usage.count(quotas.RESULT_BYTES) > RESULT_BYTES_PER_NAMESPACE_MAX:",
        "        if False:",
    ),
    Mutant(
        "options of a queue that nobody named change too",
        "who changes options undoes no other's change",
        _WORK,
        "        if command.changed is not None:\n",
        "        if False:\n",
    ),
    Mutant(
        "options of a queue that do not fit those that stay are taken",
        "a command makes sense, whoever proposed it",
        _WORK,
        "            check_options(options)  # Each",
        "            pass  # Each",
    ),
    Mutant(
        "claims that do not hold any more are kept",
        "P6",
        "logd/coordination/queues.py",
        "        if len(self._claims) > 2 * self.in_flight + _HEAP_SPARE:",
        "        if False:",
    ),
    Mutant(
        "when items that are gone were put is kept",
        "P6",
        "logd/coordination/queues.py",
        "        if len(self._ages) > 2 * len(self.items) + _HEAP_SPARE:",
        "        if False:",
    ),
    Mutant(
        "a range is deleted however large it is",
        "P6",
        "logd/coordination/keys.py",
        "            if count > KEYS_DELETED_MAX:",
        "            if False:",
    ),
    Mutant(
        "who counts an ephemeral key up takes it from its owner's session",
        "a key goes with its owner",
        "logd/coordination/keys.py",
        "        owner = found.session if found else 0\n        return self._put(operation.key, b",
        "        owner = 0\n        return self._put(operation.key, b",
    ),
    Mutant(
        "weights are forgotten when shards are listed again",
        "shards are spread by weight",
        "logd/coordination/assignments.py",
        "            weight = known.weight if weight is None else weight\n",
        "",
    ),
    Mutant(
        "a refusal is not remembered",
        "a session's command takes effect once",
        _STATE,
        "            result = _refused(refused, revision)\n        keep_result",
        "            return _refused(refused, revision)\n        keep_result",
    ),
    Mutant(
        "opening again opens another session",
        "a session's command takes effect once",
        _NAMESPACE,
        "        if known is not None:\n            return Opened",
        "        if known is not None and False:\n            return Opened",
    ),
    Mutant(
        "a session reaches into another namespace",
        "a session belongs to one namespace",
        _STATE,
        "        if space is None or space.name != entry.namespace:\n            return None\n"
        "        return space.sessions[entry.session]",
        "        if space is None:\n            return None\n"
        "        return space.sessions[entry.session]",
    ),
    Mutant(
        "log time goes back",
        "time is the log's, and never goes back",
        _STATE,
        "self._log_time_ms = max(self._log_time_ms, entry.time_ms)",
        "self._log_time_ms = entry.time_ms",
    ),
    Mutant(
        "an ended session keeps its ephemeral keys",
        "an ended session holds nothing",
        _NAMESPACE,
        "        self.keys.end_session(session, revision)\n",
        "",
    ),
    Mutant(
        "an ended session keeps its claims",
        "an ended session holds nothing",
        _NAMESPACE,
        "        self.work.end_session(session, revision, time_ms)\n",
        "",
    ),
    Mutant(
        "a reader overtakes a waiting writer",
        "locks are fair",
        _LOCKS,
        "if not lock.waiting and lock.admits(ticket):",
        "if lock.admits(ticket):",
    ),
    Mutant(
        "a writer is admitted beside readers",
        "a lock excludes",
        _LOCKS,
        '        if ticket.mode == "exclusive":\n            return False\n',
        "",
    ),
    Mutant(
        "a reader is admitted beside a writer",
        "a lock excludes",
        _LOCKS,
        'return next(iter(self.holders.values())).mode == "shared"',
        "return True",
    ),
    Mutant(
        "a semaphore gives one permit too many",
        "a semaphore has its permits",
        _LOCKS,
        "return self.held_permits + ticket.permits <= self.capacity",
        "return self.held_permits + ticket.permits <= self.capacity + 1",
    ),
    Mutant(
        "a token is the ticket",
        "tokens grow with each grant",
        _LOCKS,
        "            time_ms,\n            revision,\n            ticket.mode,",
        "            time_ms,\n            ticket.ticket,\n            ticket.mode,",
    ),
    Mutant(
        "the last who asked is granted first",
        "locks are fair",
        _LOCKS,
        "            ticket = next(iter(lock.waiting.values()))\n",
        "            ticket = next(reversed(lock.waiting.values()))\n",
    ),
    Mutant(
        "only one reader at the head is granted",
        "nothing is free that somebody waits for",
        _LOCKS,
        "            self._grant(lock, ticket, revision, time_ms)\n        if lock.is_free:",
        "            self._grant(lock, ticket, revision, time_ms)\n            break\n"
        "        if lock.is_free:",
    ),
    Mutant(
        "a session that ends is granted what it waits for",
        "a session that died while waiting is never granted",
        _LOCKS,
        "            self._remove(touched[at], ticket, revision)\n"
        "        for at in sorted(touched):\n",
        "            self._remove(touched[at], ticket, revision)\n"
        "            self._settle(touched[at], revision, time_ms)\n"
        "            self._locks[at] = touched[at]\n"
        "        for at in sorted(touched):\n",
    ),
    Mutant(
        "whoever knows a ticket may release it",
        "what is another's is not released",
        _LOCKS,
        "if lock is None or found is None or found.session != session.session:",
        "if lock is None or found is None:",
    ),
    Mutant(
        "a candidate that does not lead hands over",
        "a lock excludes",
        _LOCKS,
        "        if found.token is None:\n            raise NotHeldError(",
        "        if False:\n            raise NotHeldError(",
    ),
    Mutant(
        "a refused transaction is half done",
        "a transaction is all or nothing",
        _KEYS,
        "            self._put_back()\n            raise",
        "            raise",
    ),
    Mutant(
        "a comparison of revisions always holds",
        "compare-and-set",
        _KEYS,
        "compare.revision == (found.revision if found else 0)",
        "compare.revision is not None",
    ),
    Mutant(
        "an overwritten key is a new one",
        "a key knows when it came to be",
        _KEYS,
        "created = found.created if found else revision",
        "created = revision",
    ),
    Mutant(
        "an ephemeral key stays with its first writer",
        "a key goes with its owner",
        _KEYS,
        "        if found is not None and found.session:\n"
        "            self._sessions[found.session].keys.discard(key)\n",
        "",
    ),
    Mutant(
        "a range includes its end",
        "ranges are half-open",
        _KEYS,
        "inclusive=(True, False)",
        "inclusive=(True, True)",
    ),
    Mutant(
        "a transaction tells of each step",
        "a key has one event a revision",
        _KEYS,
        "        if key not in self._before:\n            self._before[key] = found\n",
        "        self._before[key] = found\n",
    ),
    Mutant(
        "a member's name is taken from a session that lives",
        "a member is one session's",
        _MEMBERS,
        "        if known.session != session.session:\n",
        "        if False:\n",
    ),
    Mutant(
        "a revoked shard has its new owner at once",
        "no shard has two owners",
        _ASSIGNMENTS,
        "        if shard.owner is None or shard.owner not in present:\n",
        "        if shard.owner is None or shard.owner not in present or aimed.is_revoked:\n",
    ),
    Mutant(
        "a shard off the list is forgotten at once",
        "no shard has two owners",
        _ASSIGNMENTS,
        "                shards[shard.shard] = msgspec.structs.replace(shard, is_listed=False)\n"
        "        shards.update(listed)\n",
        "                shards[shard.shard] = msgspec.structs.replace(shard, is_listed=False)\n"
        "        for name in set(shards) - set(listed):\n"
        "            del shards[name]\n"
        "            self._usage.add(quotas.SHARDS, -1)\n"
        "        shards.update(listed)\n",
    ),
    Mutant(
        "anybody lets go of a shard",
        "no shard has two owners",
        _ASSIGNMENTS,
        "            if shard is not None and shard.owner == command.member:\n"
        "                self._settle",
        "            if shard is not None:\n                self._settle",
    ),
    Mutant(
        "a new owner has the old token",
        "tokens grow with each grant",
        _ASSIGNMENTS,
        "token = shard.token if shard.target is None else revision",
        "token = shard.token or revision",
    ),
    Mutant(
        "the larger shares go to who came first",
        "nothing moves that need not",
        _SPREADING,
        "by_count = sorted(members, key=lambda member: -len(having[member]))",
        "by_count = list(members)",
    ),
    Mutant(
        "shards are spread from scratch",
        "nothing moves that need not",
        _SPREADING,
        'having.get(placed.member or "", orphans).append(placed)',
        "orphans.append(placed)",
    ),
    Mutant(
        "weights do not count",
        "shards are spread by weight",
        _SPREADING,
        "    if all(weight == weights[0] for weight in weights):",
        "    if True:",
    ),
    Mutant(
        "any token completes an item",
        "a stale claim cannot complete",
        _QUEUES,
        "if found is None or found.token != token or found.session != session:",
        "if found is None or found.session != session:",
    ),
    Mutant(
        "another's claim completes an item",
        "a stale claim cannot complete",
        _QUEUES,
        "if found is None or found.token != token or found.session != session:",
        "if found is None or found.token != token:",
    ),
    Mutant(
        "a claim holds at the moment it runs out",
        "a stale claim cannot complete",
        _QUEUES,
        "return found if found.token and now_ms < found.until_ms else None",
        "return found if found.token and now_ms <= found.until_ms else None",
    ),
    Mutant(
        "what is due waits for an Advance",
        "time is the log's, and never goes back",
        _STATE,
        "        if self._timers.may_be_due(self._log_time_ms):\n",
        "        if type(entry.command) is Advance:\n",
    ),
    Mutant(
        "items of a key are handed out side by side",
        "items of a key go in order",
        _QUEUES,
        "            if len(following) > 1:\n                return\n",
        "            pass\n",
    ),
    Mutant(
        "a key stops at its first dead item",
        "items of a key go in order",
        _QUEUES,
        "        if following:\n            self._line_up(self.items[following[0]], now_ms)\n",
        "        if following:\n            pass\n",
    ),
    Mutant(
        "the back-off does not grow",
        "an item that fails waits longer each time",
        _QUEUES,
        "self.options.backoff_ms << min(attempts - 1, _DOUBLINGS_MAX)",
        "self.options.backoff_ms",
    ),
    Mutant(
        "attempts are not counted",
        "poisoned items die",
        _QUEUES,
        "        if item.attempts >= self.options.attempts_max:\n",
        "        if item.attempts > self.options.attempts_max:\n",
    ),
    Mutant(
        "dead items are kept without bound",
        "P6",
        _QUEUES,
        "        if len(self.dead) <= self.options.dead_items_max:\n",
        "        if True:\n",
    ),
    Mutant(
        "priorities are ignored",
        "higher priorities go first",
        _QUEUES,
        "heapq.heappush(self._ready, (-item.priority, item.place, item.item))",
        "heapq.heappush(self._ready, (0, item.place, item.item))",
    ),
    Mutant(
        "half of the claims are renewed",
        "all or nothing",
        _WORK,
        "        if lost or queue is None:\n",
        "        if not held or queue is None:\n",
    ),
    Mutant(
        "loads are added up as this version of Python does",
        "replicas come to the same state",
        _SPREADING,
        "reduce(add, known, 0.0)",
        "sum(known)",
    ),
    Mutant(
        "a namespace whose first session is refused stays",
        "P6",
        _STATE,
        "            space = self._new_namespace(entry.namespace)\n",
        "            space = self._add_namespace(entry.namespace)\n",
    ),
    Mutant(
        "results of all namespaces together are kept without bound",
        "P6",
        _SESSIONS,
        "        if usage.partition.result_bytes > RESULT_BYTES_PER_PARTITION_MAX:",
        "        if False:",
    ),
    Mutant(
        "a session that has no room for results cannot be closed",
        "P6",
        _STATE,
        "        if type(command) is CloseSession:\n"
        "            return self._end(entry.session, revision)\n"
        "        session.check_room(usage)\n",
        "        session.check_room(usage)\n"
        "        if type(command) is CloseSession:\n"
        "            return self._end(entry.session, revision)\n",
    ),
    Mutant(
        "a claim that does not count uses up an attempt",
        "items do not die of workers that are stopped",
        _QUEUES,
        "self._free(item, item.attempts - 1, ",
        "self._free(item, item.attempts, ",
    ),
    Mutant(
        "a deleted queue keeps its room",
        "quotas count what is there",
        _WORK,
        "                self._unclaim(queue, item)\n            self._forget(item)\n"
        "        for record",
        "                self._unclaim(queue, item)\n        for record",
    ),
    Mutant(
        "a restored delay is over",
        "a snapshot is the state",
        _QUEUES,
        "            elif item.item in still_delayed:\n",
        "            elif False:\n",
    ),
    Mutant(
        "a watch resumes across a gap",
        "a watch skips nothing",
        _EVENTS,
        "        if from_revision < self.oldest:\n",
        "        if False:\n",
    ),
    Mutant(
        "a namespace made anew forgets that it has forgotten",
        "a watch skips nothing",
        _STATE,
        "                self._events_forgotten = Offset(revision + 1)\n",
        "",
    ),
    Mutant(
        "a timer that was put off is forgotten",
        "what is due is brought about",
        _TIMERS,
        "            self.schedule(place, really)\n",
        "",
    ),
    Mutant(
        "a quota has room for one more",
        "P6",
        "logd/coordination/quotas.py",
        "if self._counts[what] + more > QUOTAS[what]:",
        "if self._counts[what] + more > QUOTAS[what] + 1:",
    ),
    Mutant(
        "a namespace has any number of queues",
        "P6",
        _WORK,
        "            self._usage.require(quotas.QUEUES, 1)\n",
        "",
    ),
    Mutant(
        "the items of a namespace are of any size",
        "P6",
        _WORK,
        "        self._usage.require(quotas.ITEM_BYTES, more_bytes)\n",
        "",
    ),
    Mutant(
        "a member shows as much as it likes when it joins",
        "P6",
        "logd/coordination/members.py",
        "        self._usage.require(quotas.DATA_BYTES, len(command.data))\n",
        "",
    ),
    Mutant(
        "a candidate shows as much as it likes when it changes",
        "P6",
        "logd/coordination/locks.py",
        "        self._usage.require(quotas.DATA_BYTES, len(command.data) - len(found.data))\n",
        "",
    ),
    Mutant(
        "a group has any number of members",
        "P6",
        "logd/coordination/members.py",
        "        if len(self._groups.get(command.group, ())) >= MEMBERS_PER_GROUP_MAX:\n",
        "        if False:\n",
    ),
    Mutant(
        "a group has any number of shards",
        "P6",
        "logd/coordination/assignments.py",
        "        if len(shards) + len(new) > SHARDS_PER_GROUP_MAX:\n",
        "        if False:\n",
    ),
    Mutant(
        "a partition has any number of namespaces",
        "P6",
        _STATE,
        "            if len(self._namespaces) >= NAMESPACES_PER_PARTITION_MAX:\n",
        "            if False:\n",
    ),
    Mutant(
        "namespaces together have no bound",
        "P6",
        "logd/coordination/quotas.py",
        "if needed > limits.STATE_BYTES_PER_PARTITION_MAX:",
        "if False:",
    ),
    Mutant(
        "what an owner has had longest moves first",
        "nothing moves that need not",
        _SPREADING,
        "return -placed.reluctance, placed.shard",
        "return placed.reluctance, placed.shard",
    ),
)
