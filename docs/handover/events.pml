/*
 * What the writes of a slot emit, while the slot goes from one database to the other and back, as ../handover.md describes under
 * "What writes have emitted": each database has an outbox, and relays of its own that publish it. Spin searches every schedule.
 *
 * handover.pml shows who may write, and when; here writes come in order, one lane is active at most, and the steps of a hand-over
 * are these: the old lane leaves; the executor takes a view of the source; it waits until nothing waits there that the view shows;
 * the new lane becomes active. Each write emits one event, in its own transaction. An event has the number of its write.
 *
 * A relay reads what waits, publishes the oldest first, and deletes what it has published. It may stop between any two steps for
 * any time, and be killed there. Copies that it publishes then have the same idempotency keys, so what counts is the first of
 * each event.
 *
 * Asked: the first copies of the events are published in the order of their writes, and in the end all of them are.
 *
 * -D sets the configuration:
 *   WRITES     writes of the slot
 *   MOVES      how often it changes its database: there, back, there again
 *   RELAYS     of each database
 *   MUTANT_... breaks one rule; the search must find out
 */

#ifndef WRITES
#define WRITES 4
#endif
#ifndef MOVES
#define MOVES 2
#endif
#ifndef RELAYS
#define RELAYS 2
#endif

#define BIT(x) (1 << (x))
#define ALL (BIT(WRITES + 1) - 2)

byte owner;        /* the database in which the slot is active, or was last */
bool is_active = true;
byte moves;        /* done so far */
byte written;
byte outbox[2];    /* the events that wait in each database */
byte published;    /* those of which a first copy is out */
bool calm;

proctype Consumer() {
end:
	do
	:: d_step {
		is_active && written < WRITES ->
			written++;
			outbox[owner] = outbox[owner] | BIT(written)
	}
	od
}

/* The events of `read` that are older than event e: those that a relay publishes before it. */
#define OLDER(read, e) ((read) & (BIT(e) - 1))

/* Event e is the oldest of what the relay has read and not yet published. */
#define PUBLISH(e)                                                                                           \
	:: d_step {                                                                                          \
		(left & BIT(e)) && !OLDER(left, e) ->                                                        \
			assert((published & BIT(e)) || (published & (BIT(e) - 2)) == BIT(e) - 2);            \
			published = published | BIT(e);                                                      \
			left = left & ~BIT(e)                                                                \
	}

proctype Relay(byte d) {
	byte read, left;
end:
	do
	:: d_step { !read && outbox[d] -> read = outbox[d]; left = read }
	PUBLISH(1)
	PUBLISH(2)
	PUBLISH(3)
	PUBLISH(4)
	:: d_step { read && !left -> outbox[d] = outbox[d] & ~read; read = 0 }
	:: d_step { !calm && read -> read = 0; left = 0 } /* killed */
	od
}

#ifdef MUTANT_events_not_waited_for
#define SHOWN 0
#else
#define SHOWN (outbox[owner] & view)
#endif

proctype Executor() {
	byte view; /* the positions of the source up to the newest that its view shows */
	bool viewed;
end:
	do
	:: d_step { is_active && moves < MOVES -> is_active = false }
#ifdef MUTANT_view_before_left
	:: d_step { is_active && !viewed && moves < MOVES -> view = outbox[owner]; viewed = true }
#endif
	:: d_step { !is_active && !viewed -> view = outbox[owner]; viewed = true }
	:: d_step {
		!is_active && viewed && !SHOWN ->
			owner = 1 - owner;
			is_active = true;
			moves++;
			view = 0;
			viewed = false
	}
	:: d_step { !calm && viewed -> view = 0; viewed = false } /* killed: the transaction is rolled back */
	od
}

proctype Judge() {
	calm = true;
end:
	timeout; /* nobody can do anything any more */
	assert(written == WRITES && published == ALL && !outbox[0] && !outbox[1])
}

init {
	atomic {
		run Consumer();
		run Executor();
		run Relay(0);
		run Relay(1);
#if RELAYS == 2
		run Relay(0);
		run Relay(1);
#endif
		run Judge()
	}
}
