/*
 * Pub/Sub with order kept: the topic is one sequence, and an entry's publish time is its place in it.
 *
 * A subscription is a watermark: all before it is acked. A replica reads on from where it is. It may be set back to the
 * watermark (it crashed, or its leases ended) and, acked or not, further. Several replicas may read at once: all but one have
 * lost their leases, and don't know it yet.
 */

#if defined(SKEW) || defined(MUTANT_left_too_soon) || defined(MUTANT_stale_map)
#define LENGTH (3 * MSGS + REBALANCES * BARRIERS + HOSTILE)
#else
#define LENGTH (2 * MSGS + REBALANCES * BARRIERS + HOSTILE)
#endif
#define REPLICAS (OLD + NEW * REBALANCES)

byte topic[LENGTH];
byte published;
byte acked[LANES];
byte created[LANES]; /* the subscription's first entry */
byte pos[REPLICAS];
byte again; /* messages published again by a consumer */

#ifdef SKEW
short early;
short late;
#define SINCE(x, t) ((late & BIT(x)) || (!(early & BIT(x)) && (x) >= (t)))
#else
#define SINCE(x, t) ((x) >= (t))
#endif

#define EMPTY(g) (!reads[g] || acked[g] == published)
#ifdef MUTANT_finish_with_backlog
#define DRAINED(g) true
#else
#define DRAINED(g) (acked[g] > barrier_time[g]) /* what came since may be dropped: the new subscription has it */
#endif

inline publish(x) {
	topic[published] = x;
	published++
}

inline publish_data(m, copy, clock) {
	if
	:: copy == 0 -> produced++
	:: else -> repeated = repeated | BIT(m)
	fi;
#ifdef SKEW
	early = early | ((clock == EARLY) << published);
	late = late | ((clock == LATE) << published);
#endif
	publish(m)
}

inline publish_barrier(h) {
	barriers[h]++;
	publish(BARRIER + h)
}

inline publish_forged() { publish(FORGED) }

/* The rebalance whose barrier an entry says that it is. */
#define REBALANCE(what) ((what) == FORGED -> rebalance : (what) - BARRIER)

inline place_replicas(g, x) {
	e = (g == 0 -> 0 : OLD + NEW * (g - 1));
	do
	:: e < OLD + NEW * g -> pos[e] = x; e++
	:: else -> break
	od;
	skip
}

inline subscribe(g) {
	reads[g] = true;
	created[g] = published;
	acked[g] = published;
	place_replicas(g, published)
}

/* What its replicas still hold makes no difference: the lane has no row any more, or is `left` as before. */
inline unsubscribe(g) {
	reads[g] = false;
	created[g] = 0;
	acked[g] = 0;
	place_replicas(g, 0)
}

#define HAS(g, x) (reads[g] && (x) >= acked[g])

inline look_for(m) {
	e = 0;
	do
	:: e < published ->
		found = found || (topic[e] == m && (HAS(0, e) || HAS(1, e) || HAS(LANES - 1, e)));
		e++
	:: else -> break
	od;
	skip
}

inline publish_again(m) {
#if !defined(SKEW) && !defined(MUTANT_left_too_soon) && !defined(MUTANT_stale_map)
	assert(false); /* order was kept, so it can't be needed */
#endif
	/* One copy is enough for any number of replicas that find so. */
	if
	:: again & BIT(m)
	:: else -> again = again | BIT(m); publish(m)
	fi
}

inline handle(r, g) {
	what = topic[pos[r]];
	if
	:: what >= BARRIER ->
		whose = REBALANCE(what);
		if
		:: PASSES(g, whose, what == FORGED) -> pass(g, whose, pos[r])
		:: else
		fi
	:: what < BARRIER && HANDLES(g) && !KNOWN(g, what) -> write(g, what)
	:: what < BARRIER && STRANDED(g, what, pos[r]) -> publish_again(what)
	:: else /* it is known, or another lane has it */
	fi
}

inline acknowledge(r, g) {
	if
	:: pos[r] == acked[g] ->
		acked[g]++;
		if
		:: topic[pos[r]] < BARRIER -> what = topic[pos[r]]; remembered(what)
		:: else
		fi
	:: else /* earlier: acked before; later: Pub/Sub sends it again behind what is not acked */
	fi
}

#define NEXT(r, g) (reads[g] && pos[r] < published && (topic[pos[r]] >= BARRIER || !HOLDS(g, topic[pos[r]])))

/* Two replicas of a lane differ only by where they are, so states that differ only by who is who are one. */
#define SORT(r)                                                                                             \
	if                                                                                                  \
	:: pos[r] < pos[(r) + 1] -> e = pos[r]; pos[r] = pos[(r) + 1]; pos[(r) + 1] = e                     \
	:: else                                                                                             \
	fi

inline sort_replicas() {
#if OLD == 2
	SORT(0);
#endif
#if NEW == 2
	SORT(OLD);
#endif
#if NEW == 2 && LANES == 3
	SORT(OLD + NEW);
#endif
	skip
}

proctype Replica(byte r; byte g) {
end:
	do
	:: d_step { NEXT(r, g) -> handle(r, g); acknowledge(r, g); pos[r]++; sort_replicas() }
	:: d_step { /* the ack is lost */
		!calm && NEXT(r, g) && pos[r] == acked[g] ->
			handle(r, g);
			pos[r]++;
			sort_replicas()
	}
	:: d_step { pos[r] > acked[g] -> pos[r] = acked[g]; sort_replicas() }
	:: d_step { !calm && pos[r] <= acked[g] && pos[r] > created[g] -> pos[r]--; sort_replicas() }
#ifdef MUTANT_left_too_soon
	:: d_step { /* the barrier overtakes what the replica has in flight */
		reads[g] && pos[r] + 1 < published && topic[pos[r] + 1] >= BARRIER && PASSES(g, topic[pos[r] + 1] - BARRIER, false) ->
			pass(g, topic[pos[r] + 1] - BARRIER, pos[r] + 1)
	}
#endif
#ifdef MUTANT_stale_map
	:: d_step { seen[g] != lane[g] -> seen[g] = lane[g] }
#endif
	od
}

inline run_replicas() {
	run Replica(0, 0);
	run Replica(OLD, 1);
#if OLD == 2
	run Replica(1, 0);
#endif
#if NEW == 2
	run Replica(OLD + 1, 1);
#endif
#if LANES == 3
	run Replica(OLD + NEW, 2);
#endif
#if LANES == 3 && NEW == 2
	run Replica(OLD + NEW + 1, 2);
#endif
	skip
}
