/*
 * The hand-over of one slot from lane to lane, as ../handover.md tells it. Spin searches every schedule of it.
 *
 * A lane is the slot in one generation: a subscription, and a row with the lane's state in a database. Lane 0 has the slot
 * at first; rebalance h moves it to lane h + 1. Processes are named after the code.
 *
 * Until `calm`, everything may go wrong any number of times: replicas crash, leases end, acks are lost, messages come again.
 * `calm` may come in every state; from then on the system must reach an end by itself, and `Judge` looks at what it made. So
 * a state that can't be left is found as surely as a lost write.
 *
 * -D sets the configuration:
 *   MSGS       messages of one key, published in the order 1, 2, 3
 *   TWICE      bit m is set: message m may be published a second time, whenever, with the same idempotency key
 *   BARRIERS   how often the barrier of one rebalance may be published
 *   HOSTILE    how many barriers somebody else may publish, whenever; each names the lane that the open rebalance wants to end
 *   LANES      2: one rebalance; 3: a second may follow when the first is aborted or done
 *   DBS        bit g is set: lane g is in database 1, else in 0. With two lanes: 2 is a slot that moves, 0 one that stays
 *   OLD, NEW   replicas that read lane 0, and each later lane (where order is broken there is no limit)
 *   UNORDERED  messages are delivered in any order: no ordering key, or several regions
 *   SKEW       Pub/Sub's clocks disagree, by less than the executor waits between `due` and the barrier
 *   ENDS       look for schedules that never end, instead of false assertions
 *   MUTANT_... breaks one rule; the search must find out
 */

#ifndef MSGS
#define MSGS 2
#endif
#ifndef TWICE
#define TWICE 0
#endif
#ifndef BARRIERS
#define BARRIERS 1
#endif
#ifndef HOSTILE
#define HOSTILE 0
#endif
#ifndef LANES
#define LANES 2
#endif
#ifndef DBS
#define DBS 2
#endif
#ifndef OLD
#define OLD 1
#endif
#ifndef NEW
#define NEW 1
#endif

#define REBALANCES (LANES - 1)
#define DB(g) ((DBS >> (g)) & 1)
#define BIT(x) (1 << (x))
#define ALL (BIT(MSGS + 1) - 2) /* messages are numbered from 1; bit 0 is a row that the slot no longer has */
#define BARRIER 8               /* what BARRIER + h in the topic is: a barrier of rebalance h */
#define FORGED (BARRIER + REBALANCES) /* one that no executor published, so its token is wrong */

/* A lane's state, in the order they come. NONE: it has no row. */
#define NONE 0
#define ARRIVING 1
#define DUE 2
#define ACTIVE 3
#define LEFT 4

byte lane[LANES];
byte barrier_time[LANES];
bool reads[LANES]; /* the lane's subscription exists */
byte rows[2];      /* the writes that each database shows */
byte inbox[2];     /* the messages that each database knows */

byte rebalance;              /* the one opened last */
byte source;                 /* the lane that was active when it was opened */
bool stopping;               /* its abort has begun, says the journal of the database that the slot moves to */
bool closed_new[REBALANCES]; /* aborted or done, in the same journal */
bool closed_old[REBALANCES]; /* aborted or done, in the journal of the database that the slot moves from */
byte barriers[REBALANCES];   /* copies published */

/* Whether the source's database awaits the barrier: a row there, with a token that only who has read the row knows. */
#define NOT_AWAITED 0
#define AWAITED 1
#define MET 2 /* the row is gone; an executor that was stopped may still publish what it knows */
byte awaited[REBALANCES];

byte produced; /* messages published once */
byte repeated; /* messages published a second time */
bool calm;
byte home; /* what no process looks at: the database whose rows count */

hidden byte e, what, whose, found; /* scratch inside one d_step, not part of a state */

#define TO (rebalance + 1) /* the lane that the slot moves to */
#define SOURCE(h) ((h) == rebalance -> source : 0)
#define KNOWN(g, m) (inbox[DB(g)] & BIT(m))
#define HOLDERS ((lane[0] == ACTIVE) + (lane[1] == ACTIVE) + (LANES == 3 && lane[LANES - 1] == ACTIVE))

/* No write is lost: each is among the rows that count, or a subscription still has it. Asked after each ack and deletion. */
inline remembered(m) {
	found = rows[home] & BIT(m);
	look_for(m);
	assert(found)
}

inline all_remembered() {
	what = 1;
	do
	:: what <= produced -> remembered(what); what++
	:: else -> break
	od;
	skip /* a d_step may not end with a loop's exit */
}

/* What a message's publish time says: the truth, or that it is from before, or from after, every barrier. Clocks that disagree
 * by less than the executor's wait can only be wrong about a message that was published once the lane was `due`. */
#define IN_ORDER 0
#define EARLY 1
#define LATE 2

/* ------------------------------------------------------------------ consumer */

#ifdef MUTANT_stale_map
byte seen[LANES]; /* the lane's state as a replica read it once, before it had the message */
#define STATE(g) seen[g]
#else
#define STATE(g) lane[g]
#endif

#if defined(MUTANT_no_hold) || defined(MUTANT_ack_while_due)
#define HOLDS(g, m) (STATE(g) == NONE)
#else
/* Whatever the inbox says: until the lane is active, its rows may be copies of some age. */
#define HOLDS(g, m) (STATE(g) == NONE || STATE(g) == DUE)
#endif

#ifdef MUTANT_no_hold
#define HANDLES(g) (STATE(g) == ACTIVE || STATE(g) == DUE)
#else
#define HANDLES(g) (STATE(g) == ACTIVE)
#endif

/* Message m, which came as topic entry x, belongs before the barrier, and yet nobody handled it: publish it again. */
#ifdef MUTANT_left_acks_all
#define STRANDED(g, m, x) false
#else
#define STRANDED(g, m, x) (STATE(g) == LEFT && !SINCE(x, barrier_time[g]) && !KNOWN(g, m))
#endif

inline write(g, m) {
	assert(!(rows[DB(g)] & BIT(m))); /* none doubled */
#ifndef UNORDERED
	assert((rows[DB(g)] & ALL) == BIT(m) - 2); /* none reordered */
#endif
	assert(lane[g] == ACTIVE);
	rows[DB(g)] = rows[DB(g)] | BIT(m);
	inbox[DB(g)] = inbox[DB(g)] | BIT(m)
}

/* A barrier counts for the lane that it names, while that is active, the rebalance isn't closed in the lane's database, and that
 * database awaits it by the token that it carries. */
#if defined(MUTANT_forged_barrier)
#define COUNTS(h, forged) true
#elif defined(MUTANT_no_token)
#define COUNTS(h, forged) (awaited[h] == AWAITED)
#else
#define COUNTS(h, forged) (awaited[h] == AWAITED && !(forged))
#endif

#ifdef MUTANT_any_barrier
#define PASSES(g, h, forged) (lane[g] == ACTIVE && !closed_old[h])
#else
#define PASSES(g, h, forged) (lane[g] == ACTIVE && g == SOURCE(h) && !closed_old[h] && COUNTS(h, forged))
#endif

/* With the fence alone. A slot that stays in its database is its next lane's in the same transaction. */
inline pass(g, h, t) {
	lane[g] = LEFT;
	barrier_time[g] = t;
	awaited[h] = MET;
	if
	:: lane[(h) + 1] == DUE && DB((h) + 1) == DB(g) -> lane[(h) + 1] = ACTIVE
	:: else
	fi;
	assert(HOLDERS <= 1)
}

#ifdef UNORDERED
#include "unordered.pml"
#else
#include "ordered.pml"
#endif

/* ------------------------------------------------------------------ executor */

/*
 * It remembers nothing: what it may do follows from the lanes and the journal, and each step looks at them in the transaction
 * that it is. So a crash between two steps, starting again, and several executors at once (one was stopped, and wakes up) are
 * all schedules of this one process. A copy is one step, though it reads its source outside of the destination's transaction:
 * what a lane left behind doesn't change any more.
 */

#ifdef MUTANT_due_after_abort
#define MAY_BECOME_DUE true
#else
#define MAY_BECOME_DUE (!stopping && !closed_new[rebalance])
#endif

#ifdef MUTANT_barrier_before_due
#define MAY_AWAIT(h) (lane[(h) + 1] >= ARRIVING)
#else
#define MAY_AWAIT(h) (lane[(h) + 1] >= DUE)
#endif
#define MAY_PUBLISH_BARRIER(h) (awaited[h] != NOT_AWAITED)

#define FINISHED (lane[TO] == ACTIVE && lane[0] == NONE && (TO == 1 || lane[1] == NONE))

#ifdef MUTANT_abort_at_once
#define SETTLED (lane[TO] != NONE)
#else
#define SETTLED (lane[TO] == ARRIVING || lane[TO] == ACTIVE) /* no barrier is out that somebody must still pass */
#endif

#ifdef MUTANT_abort_in_one_round
#define MAY_CLOSE (FINISHED || SETTLED)
#define MAY_CLOSE_OLD (FINISHED || (!calm && SETTLED) || closed_new[rebalance])
#else
#define MAY_CLOSE (FINISHED || (stopping && SETTLED))
#define MAY_CLOSE_OLD MAY_CLOSE
#endif

#ifdef MUTANT_wrong_source
#define FROM (lane[0] == LEFT -> 0 : source)
#else
#define FROM source
#endif

#ifdef MUTANT_copy_again
#define MAY_COPY (lane[TO] == DUE || lane[TO] == ACTIVE)
#else
#define MAY_COPY (lane[TO] == DUE)
#endif

/* No match between the copy and its source, no hand-over. */
#ifdef MUTANT_keep_leftovers
#define MATCHES (((rows[DB(TO)] | rows[DB(FROM)]) ^ rows[DB(FROM)]) == 0)
#else
#define MATCHES true
#endif

#ifdef MUTANT_activate_before_copy
bool activated_only;
#endif

inline copy() {
	rows[DB(TO)] = rows[DB(FROM)];
#ifndef MUTANT_inbox_not_copied
	inbox[DB(TO)] = inbox[DB(FROM)];
#endif
	lane[TO] = ACTIVE;
	barrier_time[TO] = barrier_time[source];
	home = DB(TO);
	assert(HOLDERS == 1);
	all_remembered()
}

/* In the source's database, which it asks whether the lane is active and the rebalance open. That the next lane is due it saw
 * before, in the other database. */
#define AWAIT_BARRIER(h)                                                                                    \
	d_step {                                                                                            \
		awaited[h] == NOT_AWAITED && MAY_AWAIT(h) && lane[SOURCE(h)] == ACTIVE && !closed_old[h] -> \
			awaited[h] = AWAITED                                                                \
	}

/* It may be published late, by an executor that was stopped in between. */
#define PUBLISH_BARRIER(h)                                                                                  \
	d_step {                                                                                            \
		MAY_PUBLISH_BARRIER(h) && barriers[h] < BARRIERS && (barriers[h] == 0 || !calm) ->          \
			publish_barrier(h)                                                                  \
	}

/* Lanes that the slot has no need of: first all their subscriptions, then the rows that count elsewhere now, then the lanes.
 * Were the inbox gone before a subscription, an old consumer would publish again what comes to it once more. */
#define OLD_SUBSCRIPTIONS (reads[0] || (TO == 2 && reads[1]))
#define MAY_DELETE(g) (lane[TO] == ACTIVE && (g) < TO)
#define DELETE_SUBSCRIPTION(g)                                                                              \
	d_step {                                                                                            \
		!closed_new[rebalance] && MAY_DELETE(g) && reads[g] && (lane[g] != LEFT || DRAINED(g)) ->   \
			unsubscribe(g);                                                                     \
			all_remembered()                                                                    \
	}
#define DELETE_LANE(g)                                                                                      \
	d_step {                                                                                            \
		!closed_old[rebalance] && MAY_DELETE(g) && lane[g] != NONE && !OLD_SUBSCRIPTIONS ->         \
			lane[g] = NONE;                                                                     \
			barrier_time[g] = 0;                                                                \
			delete_rows(DB(g))                                                                  \
	}

inline delete_rows(d) {
	if
	:: d != DB(TO) -> rows[d] = 0; inbox[d] = 0
	:: else
	fi
}

proctype Executor() {
end:
	do
	/* open */
	:: d_step { !reads[TO] && lane[TO] == NONE && !closed_new[rebalance] -> subscribe(TO) }
	:: d_step { reads[TO] && lane[TO] == NONE && !closed_new[rebalance] -> lane[TO] = ARRIVING }

	/* the slot */
	:: d_step {
		lane[TO] == ARRIVING && MAY_BECOME_DUE ->
			lane[TO] = DUE;
			if
			:: DB(source) == DB(TO) -> awaited[rebalance] = AWAITED /* one transaction */
			:: else
			fi
	}
	:: AWAIT_BARRIER(0)
	:: PUBLISH_BARRIER(0)
#ifdef MUTANT_activate_before_copy
	:: d_step {
		lane[source] == LEFT && lane[TO] == DUE && DB(source) != DB(TO) ->
			lane[TO] = ACTIVE;
			activated_only = true
	}
	:: d_step { activated_only -> activated_only = false; copy() }
#else
	:: d_step { lane[FROM] == LEFT && MAY_COPY && DB(source) != DB(TO) && MATCHES -> copy() }
#endif

	/* finish */
	:: DELETE_SUBSCRIPTION(0)
	:: DELETE_LANE(0)

	/* abort */
	:: d_step { !calm && lane[TO] != NONE && !closed_new[rebalance] && !stopping -> stopping = true }

	/* the end of both */
	:: d_step { MAY_CLOSE && !closed_new[rebalance] -> closed_new[rebalance] = true }
	:: d_step { MAY_CLOSE_OLD && !closed_old[rebalance] -> closed_old[rebalance] = true }

#if LANES == 3
	:: AWAIT_BARRIER(1)
	:: PUBLISH_BARRIER(1)
	:: DELETE_SUBSCRIPTION(1)
	:: DELETE_LANE(1)
#ifdef MUTANT_finish_blindly
	/* a finish of the first rebalance that was stopped in the middle, and wakes up during the second */
	:: d_step { !calm && rebalance == 1 && source == 1 && DB(0) != DB(1) && lane[2] >= DUE -> rows[DB(0)] = 0; inbox[DB(0)] = 0 }
#endif
#ifdef MUTANT_lanes_deleted_blindly
	/* the same, one step later */
	:: d_step {
		!calm && rebalance == 1 && source == 1 && lane[0] == NONE && lane[1] == LEFT && lane[2] == DUE ->
			lane[1] = NONE;
			barrier_time[1] = 0
	}
#endif
	:: d_step { /* the next plan */
		!calm && rebalance == 0 && closed_new[0] && closed_old[0] ->
			rebalance = 1;
			stopping = false;
			source = (lane[1] == ACTIVE -> 1 : 0)
	}
#endif
	od
}

/* ------------------------------------------------------------------ producer and judge */

#ifdef MUTANT_no_wait
#define CLOCK_MAY_BE_WRONG (lane[1] >= ARRIVING)
#else
#define CLOCK_MAY_BE_WRONG (lane[1] >= DUE)
#endif

#ifdef SKEW
#define PUBLISH(condition, m, copy)                                                                         \
	:: d_step { condition -> publish_data(m, copy, IN_ORDER) }                                          \
	:: d_step { condition && CLOCK_MAY_BE_WRONG -> publish_data(m, copy, EARLY) }                       \
	:: d_step { condition && CLOCK_MAY_BE_WRONG -> publish_data(m, copy, LATE) }
#else
#define PUBLISH(condition, m, copy) :: d_step { condition -> publish_data(m, copy, IN_ORDER) }
#endif

#define FIRST(m) PUBLISH(produced == (m) - 1, m, 0)
#define SECOND(m) PUBLISH(!calm && produced >= (m) && (TWICE & ~repeated & BIT(m)), m, 1)

proctype Producer() {
end:
	do
	FIRST(1)
	SECOND(1)
#if MSGS >= 2
	FIRST(2)
	SECOND(2)
#endif
#if MSGS >= 3
	FIRST(3)
	SECOND(3)
#endif
	od
}

#if HOSTILE
byte forged; /* barriers that no executor published */

proctype Hostile() {
end:
	do
	:: d_step { !calm && forged < HOSTILE -> publish_forged(); forged++ }
	od
}
#endif

proctype Judge() {
	calm = true;
end:
	timeout; /* nobody can do anything any more */
	assert(HOLDERS == 1);
	assert(rows[home] == ALL);
	assert(home == DB((lane[TO] == ACTIVE -> TO : source)));
	assert(EMPTY(0) && EMPTY(1) && EMPTY(LANES - 1));
	assert(closed_new[rebalance] && closed_old[rebalance]);
	assert(!FINISHED || (rows[1 - home] == 0 && inbox[1 - home] == 0))
}

init {
	atomic {
		reads[0] = true;
		lane[0] = ACTIVE;
		rows[1] = DB(1); /* a leftover where the slot goes: a row that it no longer has */
		run Executor();
		run Producer();
		run Judge();
#if HOSTILE
		run Hostile();
#endif
		run_replicas()
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
