/*
 * How a slot's rows get from one database to another while writes go on, as ../handover.md describes under "Copy first": the log
 * of changed keys, the base copy, rounds that catch up, the last delta, and the way back by the log of the new owner. Spin
 * searches every schedule of it.
 *
 * handover.pml and this file share one step: a lane becomes active, with the rows and the inbox of the lane before.
 * - handover.pml assumes that this step is right. It shows who may write, and when.
 * - This file shows that the step is right. It assumes what handover.pml shows: at most one lane is active; an active lane handles
 *   the writes in order, and none twice while its inbox is complete; a barrier is met only while the next lane is due; an abort
 *   waits for lanes that are due; the subscriptions of old lanes are gone before their rows.
 * So there is no topic here: the active lane does the next write. Redeliveries aren't steps either. One would do harm exactly
 * where the inbox lacks a write, and that is asserted.
 *
 * Lanes, databases, `calm` and `Judge` are those of handover.pml. A row has a key, and as its value the number of the write that
 * made it. What an executor does at a destination is one transaction of two steps: it holds the lane and reads a snapshot of the
 * source; then it changes rows and commits. It may stop between the two for any time, and may crash. Where it sleeps before the
 * first step, it remembers nothing that counts.
 *
 * -D sets the configuration:
 *   WRITES     writes of the slot
 *   KEYS       bit w: the key, 0 or 1, of write w
 *   DELETIONS  bit w is set: write w deletes its row
 *   EXECUTORS  how many run at once
 *   LANES      one more than there are rebalances
 *   DBS        bit g: the database, 0 or 1, of lane g. By default each rebalance goes to the other one: there, back, there again
 *   NAMES      how many logs may begin for a base copy
 *   RESTARTS   a rebalance that was aborted may be started again
 *   ENDS       look for schedules that never end, instead of false assertions
 *   MUTANT_... breaks one rule; the search must find out
 */

#ifndef WRITES
#define WRITES 3
#endif
#ifndef KEYS
#define KEYS 8
#endif
#ifndef DELETIONS
#define DELETIONS 4
#endif
#ifndef EXECUTORS
#define EXECUTORS 2
#endif
#ifndef LANES
#define LANES 2
#endif
#ifndef DBS
#define DBS 10
#endif
#ifndef NAMES
#define NAMES 2
#endif

#define REBALANCES (LANES - 1)
#define BIT(x) (1 << (x))
#define DB(g) ((DBS >> (g)) & 1)
#define KEY(w) ((KEYS >> (w)) & 1)
#define DELETES(w) ((DELETIONS >> (w)) & 1)
#define UP_TO(w) (BIT((w) + 1) - 2) /* the set of the writes 1 to w */

#define NONE 0
#define ARRIVING 1
#define DUE 2
#define ACTIVE 3
#define LEFT 4

byte lane[4];
byte barrier_time[4]; /* the barrier that the lane began or ended with; 0: none, a database's NULL */
byte source[3];       /* the lane that was active when the rebalance was opened */
byte rebalance;           /* the one opened last */
byte closed;              /* bit d: it is aborted or done, says the journal of database d */
bool stopping;            /* its abort has begun, says the journal of the database that the slot moves to */
bool calm;

#define TO(h) ((h) + 1)
#define HOLDERS ((lane[0] == ACTIVE) + (lane[1] == ACTIVE) + (lane[2] == ACTIVE) + (lane[3] == ACTIVE))
#define OWNER (lane[0] == ACTIVE -> 0 : (lane[1] == ACTIVE -> 1 : (lane[2] == ACTIVE -> 2 : 3))) /* if there is one */
/* Asked in a transaction on database d that takes or shares the fence until it commits. */
#define OPEN(h, d) ((h) == rebalance && !(closed & BIT(d)))

/* What a database has of the slot. */
#define ROW(d, k) row[2 * (d) + (k)]
#define LEFTOVER 14
#define INITIAL 15
byte row[4]; /* 0: there is none */
byte inbox[2];
byte log[2]; /* the rows of shardctl_changes. Each has a position that no other ever has: here the number of its write */

#ifdef MUTANT_log_by_key
#define POSITION(w) (KEY(w) + 1)
#else
#define POSITION(w) (w)
#endif

/* The name of each lane's log; 0: its changes aren't logged. A log that began when the lane became active is named after the
 * lane's barrier, any other has a name that no other log ever has. */
byte logged[4];
byte names; /* given so far */
#define SINCE_BARRIER(t) (8 + (t))
#define FOR_A_COPY(name) ((name) != 0 && (name) < 8)

/* The base copy that is there for a lane, as its own database says: 0, the name of the source's log in the copy's snapshot, or
 * GIVEN_UP after trouble, so that nobody tries again. */
byte base[4];
#define GIVEN_UP 255

byte written; /* writes that took effect */

/* The transaction of the write that is in flight. It shares the fence, so no lane changes until it has ended. */
#define IDLE 0
#define PLAIN 1
#define LOGGING 2
byte flight;
#define ALONE(d) (flight == IDLE || DB(OWNER) != (d))

hidden byte k, w, g, value, theirs; /* scratch inside one d_step, not part of a state */

/* What the row of `key` is after the first `version` writes. */
inline evaluate(key, version) {
	value = ((key) == 0 -> INITIAL : 0);
	w = 1;
	do
	:: w <= (version) ->
		if
		:: KEY(w) == (key) -> value = (DELETES(w) -> 0 : w)
		:: else
		fi;
		w++
	:: else -> break
	od;
	skip /* a d_step may not end with a loop's exit */
}

/* No write is lost, doubled or out of order: the next writer has the rows and the inbox that all writes so far make. */
inline check(d) {
	k = 0;
	do
	:: k < 2 -> evaluate(k, written); assert(ROW(d, k) == value); k++
	:: else -> break
	od;
	assert(inbox[d] == UP_TO(written))
}

/* ------------------------------------------------------------------ consumer */

#ifdef MUTANT_log_beside_the_write
byte owed; /* log rows for a transaction after the write's own */
#define ADD_TO_LOG(d, w) owed = owed | BIT(POSITION(w))
#else
#define ADD_TO_LOG(d, w) log[d] = log[d] | BIT(POSITION(w))
#endif

proctype Consumer() {
end:
	do
	:: d_step {
		flight == IDLE && HOLDERS == 1 && written < WRITES ->
			flight = (logged[OWNER] -> LOGGING : PLAIN)
	}
	:: d_step {
		flight != IDLE ->
			g = OWNER;
			written++;
			ROW(DB(g), KEY(written)) = (DELETES(written) -> 0 : written);
			inbox[DB(g)] = inbox[DB(g)] | BIT(written);
			if
			:: flight == LOGGING -> ADD_TO_LOG(DB(g), written)
			:: else
			fi;
			flight = IDLE;
			check(DB(g))
	}
	:: d_step { !calm && flight != IDLE -> flight = IDLE } /* rolled back */
#ifdef MUTANT_log_beside_the_write
	:: d_step { owed && HOLDERS == 1 && logged[OWNER] -> g = OWNER; log[DB(g)] = log[DB(g)] | owed; owed = 0 }
	:: d_step { owed && !calm -> owed = 0 } /* crashed in between */
#endif
	od
}

/* ------------------------------------------------------------------ executor */

/* What an executor remembers. All of it is lost when it crashes, and its transaction is rolled back. */
#define AT_REST 0
#define BASE 1    /* has read everything, for a base copy */
#define ROUND 2   /* has read what the log names */
#define LAST 3    /* the same, after the source has left */
#define FULL 4    /* has read everything, after the source has left */
#define APPLIED 5 /* has committed what the log named, and not yet deleted these log rows */
byte doing[EXECUTORS];
byte task[EXECUTORS]; /* the rebalance */
byte view[EXECUTORS]; /* the snapshot: how many writes it shows */
byte name[EXECUTORS]; /* of the log, in the snapshot */
byte read[EXECUTORS]; /* the log rows in the snapshot */

#if defined(MUTANT_lane_not_held) || defined(MUTANT_snapshot_before_lane)
#define HOLDS(x, g) false
#else
#define HOLDS(x, g) (doing[x] != AT_REST && doing[x] != APPLIED && TO(task[x]) == (g))
#endif
#define HELD(g) (HOLDS(0, g) || (EXECUTORS == 2 && HOLDS(EXECUTORS - 1, g)))

/* The rows that an earlier lane left behind here are a base copy, too, if the new owner has logged ever since it became active. */
#ifdef MUTANT_any_log_will_do
#define LOGGED_SINCE(g, t) (logged[g] != 0)
#else
#define LOGGED_SINCE(g, t) (logged[g] == SINCE_BARRIER(t))
#endif
#define LEFT_BEHIND(l, h)                                                                                    \
	((l) < source[h] && DB(l) == DB(TO(h)) && lane[l] == LEFT && barrier_time[l] != 0 &&                  \
	 LOGGED_SINCE(source[h], barrier_time[l]))
#define SOME_LEFT_BEHIND(h) (LEFT_BEHIND(0, h) || (LANES == 4 && LEFT_BEHIND(1, h)))
#ifdef MUTANT_stale_base
#define COPIED(h) (base[TO(h)] != 0 && logged[source[h]])
#else
#define COPIED(h) (base[TO(h)] != 0 && base[TO(h)] == logged[source[h]])
#endif
#define VALID(h) (base[TO(h)] != GIVEN_UP && (COPIED(h) || SOME_LEFT_BEHIND(h)))

inline rest(x) {
	doing[x] = AT_REST;
	task[x] = 0;
	view[x] = 0;
	name[x] = 0;
	read[x] = 0
}

inline activate(to, h) {
	lane[to] = ACTIVE;
	barrier_time[to] = barrier_time[source[h]];
#ifndef MUTANT_log_begins_late
	logged[to] = SINCE_BARRIER(barrier_time[to]);
#endif
	base[to] = 0;
	assert(HOLDERS == 1)
}

#if defined(MUTANT_log_deleted_first)
#define BEFORE_COMMIT(what, h) log[DB(source[h])] = 0
#elif defined(MUTANT_activated_before_delta)
#define BEFORE_COMMIT(what, h)                                                                               \
	if                                                                                                   \
	:: what == LAST -> activate(TO(h), h)                                                                \
	:: else                                                                                              \
	fi
#else
#define BEFORE_COMMIT(what, h) skip
#endif

/* Hold the lane, then take the snapshot: so what anybody else has applied is older than the snapshot. */
#define TAKE(x, h, what, condition)                                                                          \
	:: d_step {                                                                                          \
		doing[x] == AT_REST && (h) <= rebalance && !HELD(TO(h)) && DB(source[h]) != DB(TO(h)) && (condition) && \
		(!calm || (OPEN(h, DB(TO(h))) && !(what == BASE && stopping))) -> \
			doing[x] = what;                                                                     \
			task[x] = h;                                                                         \
			view[x] = written;                                                                   \
			name[x] = (what == BASE -> logged[source[h]] : 0);                                  \
			read[x] = (what == ROUND || what == LAST -> log[DB(source[h])] : 0);                 \
			BEFORE_COMMIT(what, h)                                                               \
	}

#ifdef MUTANT_snapshot_before_logged
#define MAY_COPY(h) true
#define NAME(x) logged[source[task[x]]]
#else
#define MAY_COPY(h) logged[source[h]]
#define NAME(x) name[x]
#endif

#define TAKES(x, h)                                                                                          \
	TAKE(x, h, BASE, lane[TO(h)] == ARRIVING && lane[source[h]] == ACTIVE && MAY_COPY(h) && !VALID(h) && base[TO(h)] != GIVEN_UP) \
	TAKE(x, h, ROUND, (lane[TO(h)] == ARRIVING || lane[TO(h)] == DUE) && lane[source[h]] == ACTIVE && VALID(h) && log[DB(source[h])]) \
	TAKE(x, h, LAST, lane[TO(h)] == DUE && lane[source[h]] == LEFT && VALID(h))                          \
	TAKE(x, h, FULL, lane[TO(h)] == DUE && lane[source[h]] == LEFT && !VALID(h))

#if defined(MUTANT_deletion_missed)
#define STORED(d, everything) (value || everything -> value : ROW(d, k))
#elif defined(MUTANT_base_over_leftovers)
#define STORED(d, everything) (value || !everything -> value : ROW(d, k))
#else
#define STORED(d, everything) value
#endif

#ifdef MUTANT_inbox_not_logged
#define LOGGED_TOO 0
#else
#define LOGGED_TOO -1
#endif

/* Make the rows of these keys, and their inbox rows, what the snapshot shows: whatever they were, and however often. */
inline apply(d, version, of_rows, everything) {
	k = 0;
	do
	:: k < 2 ->
		theirs = 0;
		w = 1;
		do
		:: w <= WRITES && (of_rows & BIT(POSITION(w))) ->
			theirs = theirs || KEY(w) == k;
			inbox[d] = inbox[d] | (BIT(w) & UP_TO(version) & LOGGED_TOO);
			w++
		:: w <= WRITES && !(of_rows & BIT(POSITION(w))) -> w++
		:: else -> break
		od;
		if
		:: theirs || everything -> evaluate(k, version); ROW(d, k) = STORED(d, everything)
		:: else
		fi;
		k++
	:: else -> break
	od;
	inbox[d] = (everything -> UP_TO(version) : inbox[d])
}

#if defined(MUTANT_delta_before_left)
#define ACTIVATES(x) (doing[x] == FULL || (lane[TO(task[x])] == DUE && lane[source[task[x]]] == LEFT))
#elif defined(MUTANT_activated_before_delta)
#define ACTIVATES(x) (doing[x] == FULL)
#else
#define ACTIVATES(x) (doing[x] == FULL || doing[x] == LAST)
#endif

inline commit(x) {
	g = TO(task[x]);
#ifdef MUTANT_two_snapshots
	read[x] = (doing[x] == ROUND -> log[DB(source[task[x]])] : read[x]);
#endif
	apply(DB(g), view[x], read[x], doing[x] == BASE || doing[x] == FULL);
	if
	:: doing[x] == BASE -> base[g] = NAME(x)
	:: ACTIVATES(x) -> activate(g, task[x])
	:: else
	fi;
	if
	:: doing[x] == ROUND || doing[x] == LAST -> doing[x] = APPLIED; view[x] = 0
	:: else -> rest(x)
	fi;
	if
	:: HOLDERS == 1 -> g = OWNER; check(DB(g))
	:: else
	fi
}

#if defined(MUTANT_applied_blindly)
#define MAY_COMMIT(x) true
#elif defined(MUTANT_lane_not_held) /* a lane becomes active from due alone */
#define MAY_COMMIT(x) (OPEN(task[x], DB(TO(task[x]))) && (doing[x] == BASE || doing[x] == ROUND || lane[TO(task[x])] == DUE))
#elif defined(MUTANT_snapshot_before_lane) /* it takes the lane here, and looks whether there is still something to do */
#define STILL(x) ((doing[x] == BASE && !VALID(task[x])) || (doing[x] == ROUND && VALID(task[x])) || lane[TO(task[x])] == DUE)
#define MAY_COMMIT(x) (OPEN(task[x], DB(TO(task[x]))) && lane[TO(task[x])] != ACTIVE && STILL(x))
#else
#define MAY_COMMIT(x) (OPEN(task[x], DB(TO(task[x]))) && !(doing[x] == BASE && stopping))
#endif

#ifdef MUTANT_log_deleted_unread
#define READ(x) (-1)
#else
#define READ(x) read[x]
#endif

proctype Executor(byte x) {
end:
	do
	TAKES(x, 0)
#if LANES > 2
	TAKES(x, 1)
#endif
#if LANES > 3
	TAKES(x, 2)
#endif
	:: d_step {
		doing[x] != AT_REST && doing[x] != APPLIED ->
			if
			:: MAY_COMMIT(x) -> commit(x)
			:: else -> rest(x)
			fi
	}
	:: d_step {
		doing[x] == APPLIED ->
			log[DB(source[task[x]])] = log[DB(source[task[x]])] & ~READ(x);
			rest(x)
	}
	:: d_step { !calm && doing[x] != AT_REST -> rest(x) } /* crashed */
	od
}

/* The steps of an executor that are one transaction each, and that remember nothing. */

#define SETTLED (lane[TO(rebalance)] == ARRIVING || lane[TO(rebalance)] == ACTIVE)
#define LOGS(d) (LOGS_IN(0, d) || LOGS_IN(1, d) || LOGS_IN(2, d) || LOGS_IN(3, d))
#define LOGS_IN(g, d) (DB(g) == (d) && logged[g])

/* All subscriptions of lanes that the slot has no need of are gone: see handover.pml. */
#define MAY_DELETE(g) (lane[TO(rebalance)] == ACTIVE && (g) < TO(rebalance))
#define GONE(g) ((g) >= TO(rebalance) || lane[g] == NONE)
#define FINISHED (lane[TO(rebalance)] == ACTIVE && GONE(0) && GONE(1) && GONE(2))
#define MAY_CLOSE (FINISHED || (stopping && SETTLED))

/* Seen before, in one database after the other. Once the slot has arrived no log begins, so it stays so. */
#define LOGS_NOWHERE (!LOGS(0) && !LOGS(1))
#ifdef MUTANT_rows_deleted_while_logged
#define PAST_RETURN true
#else
#define PAST_RETURN LOGS_NOWHERE
#endif

/* Closing a rebalance ends the logs that began for a copy, and those of lanes that have left. The new owner's log goes on, for the
 * way back, until `finish` ends it. */
inline end_logs(d, whatever) {
	g = 0;
	do
	:: g < 4 ->
		if
		:: DB(g) == (d) && (whatever || lane[g] != ACTIVE || FOR_A_COPY(logged[g])) -> logged[g] = 0
		:: else
		fi;
		g++
	:: else -> break
	od;
	skip
}

inline close(d) {
	closed = closed | BIT(d);
#ifndef MUTANT_log_kept
	end_logs(d, false);
#endif
	g = 0;
	do
	:: g < 4 ->
		if
		:: DB(g) == (d) -> base[g] = 0
		:: else
		fi;
		g++
	:: else -> break
	od;
	skip
}

#ifdef MUTANT_left_behind_discarded
#define TO_DISCARD(h) (base[TO(h)] != 0)
#else
#define TO_DISCARD(h) (base[TO(h)] != 0 && !SOME_LEFT_BEHIND(h))
#endif

inline discard(g) {
	ROW(DB(g), 0) = 0;
	ROW(DB(g), 1) = 0;
	inbox[DB(g)] = 0;
	base[g] = 0
}

#define MAY_REOPEN (!FINISHED && (!calm || (closed != 3 && !(stopping && SETTLED))))

inline reopen(d) {
	closed = closed & ~BIT(d);
	if
	:: (d) == DB(TO(rebalance)) -> stopping = false
	:: else
	fi
}

/* Rows go in many transactions. */
#define DELETE_ROW(d, k)                                                                                     \
	:: d_step {                                                                                          \
		MAY_DELETE(0) && DB(TO(rebalance)) != (d) && OPEN(rebalance, d) && PAST_RETURN && ROW(d, k) -> \
			ROW(d, k) = 0                                                                        \
	}

#define DELETE_LANE(g)                                                                                       \
	:: d_step {                                                                                          \
		MAY_DELETE(g) && lane[g] != NONE && OPEN(rebalance, DB(g)) && LOGS_NOWHERE &&                \
		(DB(TO(rebalance)) == DB(g) || (!ROW(DB(g), 0) && !ROW(DB(g), 1))) ->                        \
			lane[g] = NONE;                                                                      \
			barrier_time[g] = 0;                                                                 \
			inbox[DB(g)] = (DB(TO(rebalance)) == DB(g) -> inbox[DB(g)] : 0)                      \
	}

#if defined(MUTANT_logged_blindly)
#define MAY_LOG ALONE(DB(source[rebalance]))
#elif defined(MUTANT_logged_beside_the_fence)
#define MAY_LOG OPEN(rebalance, DB(source[rebalance]))
#else
#define MAY_LOG (OPEN(rebalance, DB(source[rebalance])) && ALONE(DB(source[rebalance])))
#endif

/* A slot that stays in its database goes on with the log of its lane before, under the name that this has. */
#define STAYS_LOGGED                                                                                         \
	(DB(source[rebalance]) == DB(TO(rebalance)) && logged[source[rebalance]] && !FOR_A_COPY(logged[source[rebalance]]))

inline pass_log_on() {
	logged[TO(rebalance)] = logged[source[rebalance]];
	logged[source[rebalance]] = 0
}

#ifdef MUTANT_log_passed_on_late
#define PASS_LOG_ON skip
#else
#define PASS_LOG_ON                                                                                          \
	if                                                                                                   \
	:: STAYS_LOGGED -> pass_log_on()                                                                     \
	:: else                                                                                              \
	fi
#endif

#ifdef MUTANT_discarded_blindly
byte doomed; /* the lane that an abort has seen a base of, and is to delete */
#endif

#ifdef MUTANT_log_emptied_late
bool emptying; /* it has seen that nothing is logged, and hasn't deleted yet */
#endif

proctype Steps() {
end:
	do
	:: d_step { lane[TO(rebalance)] == NONE && !closed -> lane[TO(rebalance)] = ARRIVING }

	/* the log begins */
	:: d_step {
		lane[TO(rebalance)] == ARRIVING && base[TO(rebalance)] != GIVEN_UP && MAY_LOG &&
		lane[source[rebalance]] == ACTIVE && !logged[source[rebalance]] &&
		DB(source[rebalance]) != DB(TO(rebalance)) && names < NAMES ->
			names++;
			logged[source[rebalance]] = names
	}

#ifdef MUTANT_log_begins_late
	:: d_step {
		lane[TO(rebalance)] == ACTIVE && !logged[TO(rebalance)] && closed != 3 && (GONE(0) == 0) ->
			logged[TO(rebalance)] = SINCE_BARRIER(barrier_time[TO(rebalance)])
	}
#endif

	/* a delta met trouble, as with unique values that were swapped */
	:: d_step {
		!calm && (lane[TO(rebalance)] == ARRIVING || lane[TO(rebalance)] == DUE) && VALID(rebalance) &&
		OPEN(rebalance, DB(TO(rebalance))) && !HELD(TO(rebalance)) ->
			base[TO(rebalance)] = GIVEN_UP
	}

	:: d_step {
		lane[TO(rebalance)] == ARRIVING && OPEN(rebalance, DB(TO(rebalance))) && !stopping && !HELD(TO(rebalance)) &&
		ALONE(DB(TO(rebalance))) ->
			lane[TO(rebalance)] = DUE
	}

	/* a consumer meets the barrier */
	:: d_step {
		lane[source[rebalance]] == ACTIVE && lane[TO(rebalance)] == DUE && OPEN(rebalance, DB(source[rebalance])) && flight == IDLE ->
			lane[source[rebalance]] = LEFT;
			barrier_time[source[rebalance]] = rebalance + 1;
			if
			:: DB(source[rebalance]) == DB(TO(rebalance)) ->
				lane[TO(rebalance)] = ACTIVE;
				barrier_time[TO(rebalance)] = rebalance + 1;
				PASS_LOG_ON
			:: else
			fi
	}

#ifdef MUTANT_log_passed_on_late
	:: d_step { lane[TO(rebalance)] == ACTIVE && STAYS_LOGGED -> pass_log_on() }
#endif

	/* finish: no way back from the first of these on */
	:: d_step { MAY_DELETE(0) && OPEN(rebalance, 0) && LOGS(0) && ALONE(0) -> end_logs(0, true) }
	:: d_step { MAY_DELETE(0) && OPEN(rebalance, 1) && LOGS(1) && ALONE(1) -> end_logs(1, true) }
	DELETE_ROW(0, 0)
	DELETE_ROW(0, 1)
	DELETE_ROW(1, 0)
	DELETE_ROW(1, 1)
	DELETE_LANE(0)
#if LANES > 2
	DELETE_LANE(1)
#endif
#if LANES > 3
	DELETE_LANE(2)
#endif

	/* the new owner's log has outgrown its room, so it ends: the way back copies, if that is what comes next */
	:: d_step {
		!calm && HOLDERS == 1 && logged[OWNER] && !FOR_A_COPY(logged[OWNER]) && ALONE(DB(OWNER)) ->
			g = OWNER;
			logged[g] = 0
	}

	/* what ended logs left, in a transaction that shares the fence */
#ifdef MUTANT_log_emptied_late
	:: d_step { !LOGS(0) && !emptying -> emptying = true }
	:: d_step { emptying -> emptying = false; log[0] = 0 }
#else
	:: d_step { log[0] && !LOGS(0) -> log[0] = 0 }
#endif
	:: d_step { log[1] && !LOGS(1) -> log[1] = 0 }

	/* abort */
	:: d_step { !calm && lane[TO(rebalance)] != NONE && !(closed & BIT(DB(TO(rebalance)))) && !stopping -> stopping = true }

	/* what was copied is deleted: in the transaction that deletes the mark of the base */
#ifdef MUTANT_discarded_blindly
	:: d_step { !calm && stopping && doomed == NONE && base[TO(rebalance)] -> doomed = TO(rebalance) }
	:: d_step {
		doomed != NONE ->
			if
			:: lane[doomed] == ARRIVING -> discard(doomed)
			:: else
			fi;
			doomed = NONE
	}
#else
	:: d_step {
		stopping && SETTLED && OPEN(rebalance, DB(TO(rebalance))) && TO_DISCARD(rebalance) && !HELD(TO(rebalance)) ->
			discard(TO(rebalance))
	}
#endif

	/* the end of both */
	:: d_step { MAY_CLOSE && OPEN(rebalance, 0) && ALONE(0) -> close(0) }
	:: d_step { MAY_CLOSE && OPEN(rebalance, 1) && ALONE(1) -> close(1) }

#ifdef RESTARTS
	/* a start of what was aborted; one that was killed half way is run again */
	:: d_step { closed & 1 && MAY_REOPEN -> reopen(0) }
	:: d_step { closed & 2 && MAY_REOPEN -> reopen(1) }
#endif

#if LANES > 2
	:: d_step { /* the next plan */
		!calm && rebalance + 1 < REBALANCES && closed == 3 && HOLDERS == 1 ->
			g = OWNER;
			rebalance++;
			source[rebalance] = g;
			stopping = false;
			closed = 0
	}
#endif
	od
}

/* ------------------------------------------------------------------ judge */

proctype Judge() {
	calm = true;
end:
	timeout; /* nobody can do anything any more */
	d_step {
		assert(written == WRITES);
		assert(HOLDERS == 1);
		g = OWNER;
		check(DB(g))
	}
	assert(closed == 3);
	/* nothing is logged for ever */
	assert(log[0] == 0 || LOGS(0));
	assert(log[1] == 0 || LOGS(1));
	assert(!FOR_A_COPY(logged[0]) && !FOR_A_COPY(logged[1]) && !FOR_A_COPY(logged[2]) && !FOR_A_COPY(logged[3]));
	assert(!FINISHED || LOGS_NOWHERE);
	assert(!FINISHED || (ROW(1 - DB(OWNER), 0) == 0 && ROW(1 - DB(OWNER), 1) == 0 && inbox[1 - DB(OWNER)] == 0))
}

init {
	atomic {
		lane[0] = ACTIVE;
		ROW(DB(0), 0) = INITIAL;
		ROW(1 - DB(0), 1) = LEFTOVER; /* a row that the slot no longer has */
		run Consumer();
		run Steps();
		run Executor(0);
#if EXECUTORS == 2
		run Executor(1);
#endif
		run Judge()
	}
}

#ifdef ENDS
/* Searched for cycles, not for false assertions: once it is calm, no schedule goes on for ever. */
never {
until_calm:
	if
	:: !calm -> goto until_calm
	:: calm -> goto accept_for_ever
	fi;
accept_for_ever:
	if
	:: true -> goto accept_for_ever
	fi
}
#endif
