/*
 * Pub/Sub where order is broken: any entry is delivered at any time, and again.
 *
 * So entries need names, not places: copies 0 and 1 of a message are its producer's, the others were published again; barriers
 * follow, then forged ones. Of publish times only how they compare with the barriers' matters, so the clock ticks with each barrier. Publishing
 * again what is already there with the same time can't be told from a redelivery, and is one here.
 *
 * A replica does one message at a time and remembers nothing, so one `Replica` stands for any number, and for their crashes.
 */

#if LANES == 2
#define COPIES 3
#define AGAIN(m) COPY(m, 2)
#else
#define COPIES 4
#define AGAIN(m) COPY(m, now) /* each rebalance has one barrier: published again after the first, or after the second */
#endif
#define COPY(m, c) (((m) - 1) * COPIES + (c))
#define DATA (MSGS * COPIES)
#define FORGERIES (DATA + REBALANCES * BARRIERS)
#define ENTRIES (MSGS * COPIES + REBALANCES * BARRIERS + HOSTILE)
#define MESSAGE(x) ((x) / COPIES + 1)
#define REBALANCE(x) ((x) >= FORGERIES -> rebalance : ((x) - DATA) / BARRIERS)

byte time[ENTRIES]; /* 0: not published */
byte now = 1;
short got[LANES];     /* entries that came to the subscription */
short unacked[LANES]; /* those of them that are not acked */

#define SINCE(x, t) (time[x] >= (t))
#define EMPTY(g) (unacked[g] == 0)
#ifdef MUTANT_finish_with_backlog
#define DRAINED(g) true
#else
#define DRAINED(g) EMPTY(g)
#endif

#define DELIVER_TO(g, x)                                                                                    \
	got[g] = got[g] | (reads[g] << (x));                                                                \
	unacked[g] = unacked[g] | (reads[g] << (x))

inline publish(x, t) {
	time[x] = t;
	DELIVER_TO(0, x);
	DELIVER_TO(1, x);
#if LANES == 3
	DELIVER_TO(2, x);
#endif
	skip
}

inline publish_data(m, copy, clock) {
	if
	:: copy == 0 -> produced++
	:: else -> repeated = repeated | BIT(m)
	fi;
	publish(COPY(m, copy), now);
	if
	:: clock == EARLY -> time[COPY(m, copy)] = 1
	:: clock == LATE -> time[COPY(m, copy)] = 1 + BARRIERS + HOSTILE
	:: else
	fi
}

inline publish_barrier(h) {
	now++;
	publish(DATA + (h) * BARRIERS + barriers[h], now);
	barriers[h]++
}

inline publish_forged() {
	now++;
	publish(FORGERIES + forged, now)
}

inline subscribe(g) { reads[g] = true }

inline unsubscribe(g) {
	reads[g] = false;
	got[g] = 0;
	unacked[g] = 0
}

inline look_for(m) {
	found = found || (((unacked[0] | unacked[1] | unacked[LANES - 1]) >> COPY(m, 0)) & (BIT(COPIES) - 1))
}

#ifdef MUTANT_new_key
#define DONE(g, x) (KNOWN(g, MESSAGE(x)) && (x) % COPIES < 2)
#else
#define DONE(g, x) KNOWN(g, MESSAGE(x))
#endif

inline handle(g, x) {
	if
	:: x >= DATA ->
		whose = REBALANCE(x);
		if
		:: PASSES(g, whose, x >= FORGERIES) -> pass(g, whose, time[x])
		:: else
		fi
	:: x < DATA && HANDLES(g) && !DONE(g, x) -> what = MESSAGE(x); write(g, what)
	:: x < DATA && STRANDED(g, MESSAGE(x), x) ->
		e = AGAIN(MESSAGE(x));
		if
		:: time[e] == 0 -> publish(e, now)
		:: else -> publish(e, time[e])
		fi
	:: else /* it is known, or another lane has it */
	fi
}

inline acknowledge(g, x) {
	unacked[g] = unacked[g] & ~BIT(x);
	if
	:: x < DATA -> what = MESSAGE(x); remembered(what)
	:: else
	fi
}

#define READY(g, x) ((got[g] & BIT(x)) && (!calm || (unacked[g] & BIT(x))) && ((x) >= DATA || !HOLDS(g, MESSAGE(x))))

#ifdef MUTANT_no_fence
byte decided;
#endif

proctype Replica(byte g) {
	byte x;
end:
	do
	:: atomic {
		if
		:: READY(g, 0) -> x = 0
		:: READY(g, 1) -> x = 1
		:: READY(g, 2) -> x = 2
		:: READY(g, 3) -> x = 3
#if ENTRIES > 4
		:: READY(g, 4) -> x = 4
#endif
#if ENTRIES > 5
		:: READY(g, 5) -> x = 5
#endif
#if ENTRIES > 6
		:: READY(g, 6) -> x = 6
#endif
#if ENTRIES > 7
		:: READY(g, 7) -> x = 7
#endif
#if ENTRIES > 8
		:: READY(g, 8) -> x = 8
#endif
#if ENTRIES > 9
		:: READY(g, 9) -> x = 9
#endif
		fi;
		if
		:: d_step { handle(g, x); acknowledge(g, x); x = 0 }
		:: d_step { !calm && (unacked[g] & BIT(x)) -> handle(g, x); x = 0 } /* the ack is lost */
#ifdef MUTANT_ack_before_publishing_again
		:: d_step { !calm && x < DATA && STRANDED(g, MESSAGE(x), x) -> acknowledge(g, x); x = 0 }
#endif
		fi
	   }
#ifdef MUTANT_no_fence
	/* looks at the lane, and writes later */
	:: d_step { g == 0 && decided == 0 && READY(g, 0) && HANDLES(g) -> decided = 1 }
	:: d_step {
		decided == 1 && g == 0 ->
			decided = 2;
			if
			:: !KNOWN(0, 1) -> write(0, 1)
			:: else
			fi
	}
#endif
	od
}

inline run_replicas() {
	run Replica(0);
	run Replica(1);
#if LANES == 3
	run Replica(2);
#endif
	skip
}
