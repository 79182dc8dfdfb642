/*
 * The commands that open, finish and abort one rebalance, as ../handover.md describes under "The way back": what each asks of the
 * journal in each database, in which order, and what it deletes. Spin searches every schedule of it.
 *
 * handover.pml and copy.pml have the journal's states, and let each command end where it may. Here each command is a process that
 * goes from one database to the next. It may sleep between any two steps for any time, and be killed there: then it is run again
 * from its beginning. So an abort, a start and a finish may each be half done at once.
 *
 * Asked: once something that leads back was deleted, no abort ends in any database and no start opens one; and however the
 * commands were killed, some of them lead to an end that is the same in both databases.
 *
 * -D sets the configuration:
 *   EACH       how many processes of `start` and of `finish`
 *   TO         the database, 0 or 1, that the slot moves to
 *   MUTANT_... breaks one rule; the search must find out
 */

#ifndef EACH
#define EACH 1
#endif
#ifndef TO
#define TO 1
#endif

#define OPEN 1
#define ABORTED 2
#define DONE 3

byte state[2];
bool stopping[2];  /* an abort has begun */
bool finishing[2]; /* finish has begun */

#define ARRIVING 1
#define DUE 2
#define ARRIVED 3
byte lane = ARRIVING; /* of the slot, where it moves to */

bool deleted; /* old subscriptions, then rows and lanes */
bool calm;

#define SETTLED (lane != DUE)
#define IS_OPEN(d) (state[d] == OPEN)
#define PAST_RETURN (finishing[0] || finishing[1] || state[0] == DONE || state[1] == DONE)

#define KILLED :: !calm -> goto end_rest

/* In each database the fence is taken alone, so each of these is one step. */

#define MAY_BEGIN(d) (!finishing[d] && state[d] != DONE)
inline begin(d) {
	assert(!deleted);
	state[d] = OPEN;
	stopping[d] = false
}

#define MAY_STOP(d) (!finishing[d])
inline stop(d) { stopping[d] = IS_OPEN(d) }

#define MAY_ABORT(d) (!(IS_OPEN(d) && !stopping[d]))
inline close_aborted(d) {
	if
	:: state[d] != DONE ->
		assert(!deleted);
		state[d] = ABORTED;
		stopping[d] = false
	:: else
	fi
}

/* The first database decides. What an abort or a start has left undone in the next one doesn't count any more: from now on neither
 * of them gets past the first. */
#ifdef MUTANT_refused_half_way
#define MAY_BEGIN_FINISH(d) (IS_OPEN(d) && !stopping[d])
#else
#define MAY_BEGIN_FINISH(d) ((d) == 1 || (IS_OPEN(d) && !stopping[d]))
#endif
inline begin_finish(d) {
	if
	:: state[d] != DONE ->
		state[d] = OPEN;
		stopping[d] = false;
#ifndef MUTANT_finish_not_recorded
		finishing[d] = true
#endif
	:: else
	fi
}

/* ------------------------------------------------------------------ commands */

/* Once it is calm, `start` runs only where the databases differ, and `finish` only where it gets through. */

proctype Start() {
end_rest:
	(!PAST_RETURN && (!calm || state[0] != state[1]));
	if
	:: d_step { MAY_BEGIN(0) -> begin(0) }
	:: !MAY_BEGIN(0) -> goto end_rest
	KILLED
	fi;
	if
	:: d_step { MAY_BEGIN(1) -> begin(1) }
	:: !MAY_BEGIN(1) -> goto end_rest
	KILLED
	fi;
	goto end_rest
}

proctype Abort() {
end_rest:
	(!PAST_RETURN && (IS_OPEN(0) || IS_OPEN(1)));
	if
	:: d_step { MAY_STOP(0) -> stop(0) }
	:: !MAY_STOP(0) -> goto end_rest
	KILLED
	fi;
	if
	:: d_step { MAY_STOP(1) -> stop(1) }
	:: !MAY_STOP(1) -> goto end_rest
	KILLED
	fi;
	if
	:: d_step { SETTLED && MAY_ABORT(0) -> close_aborted(0) }
	:: SETTLED && !MAY_ABORT(0) -> goto end_rest
	KILLED
	fi;
	if
	:: d_step { MAY_ABORT(1) -> close_aborted(1) }
	:: !MAY_ABORT(1) -> goto end_rest
	KILLED
	fi;
	goto end_rest
}

#define DELETES                                                                                              \
	if                                                                                                   \
	:: deleted = true                                                                                    \
	KILLED                                                                                               \
	fi;

#define MAY_FINISH (lane == ARRIVED && (state[0] != DONE || state[1] != DONE))
#define GETS_THROUGH (MAY_BEGIN_FINISH(0) && MAY_BEGIN_FINISH(1))

proctype Finish() {
end_rest:
	(MAY_FINISH && (!calm || GETS_THROUGH || state[0] == DONE));
#ifdef MUTANT_deleted_before_recorded
	DELETES
#endif
	if
	:: d_step { state[0] == DONE || MAY_BEGIN_FINISH(0) -> begin_finish(0) }
	:: state[0] != DONE && !MAY_BEGIN_FINISH(0) -> goto end_rest
	KILLED
	fi;
	if
	:: d_step { state[1] == DONE || MAY_BEGIN_FINISH(1) -> begin_finish(1) }
	:: state[1] != DONE && !MAY_BEGIN_FINISH(1) -> goto end_rest
	KILLED
	fi;
	DELETES
	if
	:: d_step { state[0] = DONE; stopping[0] = false }
	KILLED
	fi;
	if
	:: d_step { state[1] = DONE; stopping[1] = false }
	KILLED
	fi;
	goto end_rest
}

/* `run`, which asks in the transaction whether the rebalance goes on there; and a consumer, which meets the barrier. An abort
 * brings to its end what is due. */
proctype Run() {
end:
	do
	:: d_step { lane == ARRIVING && IS_OPEN(TO) && !stopping[TO] -> lane = DUE }
	:: d_step { lane == DUE && IS_OPEN(1 - TO) -> lane = ARRIVED }
	od
}

proctype Judge() {
	calm = true;
end:
	timeout; /* nobody can do anything any more */
	assert(state[0] == state[1]);
	assert(state[0] == DONE || state[0] == ABORTED)
}

init {
	atomic {
		state[0] = OPEN;
		state[1] = OPEN;
		run Start();
		run Abort();
		run Finish();
#if EACH == 2
		run Start();
		run Finish();
#endif
		run Run();
		run Judge()
	}
}
