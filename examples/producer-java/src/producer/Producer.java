package producer;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.function.Consumer;
import java.util.function.UnaryOperator;

/**
 * Publishes the writes of a slot in the order of the calls, one request of a slot at a time: what comes meanwhile forms the next
 * one. When a request fails, so does every write of its slot that waits, and each later one, until {@link #resume}. So no write
 * overtakes an earlier one.
 */
public final class Producer implements AutoCloseable {
    private static final int MAX_REQUESTS = 64; // in flight at once
    private static final int MAX_REQUEST_WRITES = 500;
    private static final int MAX_REQUEST_CHARACTERS = 1_000_000;

    private final Topic topic;
    private final UnaryOperator<String> slotOf;
    private final ExecutorService threads = Executors.newFixedThreadPool(MAX_REQUESTS);
    private final Map<String, Slot> slots = new HashMap<>(); // guarded by this, and so are its values

    /** {@code slotOf} gives the digits of a key. */
    public Producer(Topic topic, UnaryOperator<String> slotOf) {
        this.topic = topic;
        this.slotOf = slotOf;
    }

    private record Waiting(String message, CompletableFuture<String> id) {}

    private static final class Slot {
        List<Waiting> waiting = new ArrayList<>();
        boolean sending; // a thread has a request of the slot in flight, or is about to
        Throwable failure; // the slot is held
    }

    /** The future message id. Doesn't block. */
    public synchronized CompletableFuture<String> publish(Write write) {
        String digits = slotOf.apply(write.key());
        Slot slot = slots.computeIfAbsent(digits, name -> new Slot());
        if (slot.failure != null) {
            return CompletableFuture.failedFuture(new SlotHeldException(digits, slot.failure));
        }
        Waiting waiting = new Waiting(Topic.message(write, digits), new CompletableFuture<>());
        slot.waiting.add(waiting);
        if (!slot.sending) {
            slot.sending = true;
            threads.execute(() -> send(digits, slot));
        }
        return waiting.id;
    }

    /** Lets a held slot publish again, once each of its writes has failed. The caller then retries them in order. */
    public synchronized void resume(String digits) {
        Slot slot = slots.get(digits);
        if (slot != null && slot.sending) {
            throw new IllegalStateException("slot " + digits + ": writes are in flight. Wait until they have failed.");
        }
        slots.remove(digits);
    }

    private void send(String digits, Slot slot) {
        for (List<Waiting> batch = take(digits, slot); !batch.isEmpty(); batch = take(digits, slot)) {
            try {
                List<String> ids = topic.publish(batch.stream().map(Waiting::message).toList());
                for (int index = 0; index < ids.size(); index++) {
                    batch.get(index).id.complete(ids.get(index));
                }
            } catch (IOException | InterruptedException | RuntimeException failure) {
                hold(digits, slot, batch, failure);
                return;
            }
        }
    }

    private synchronized List<Waiting> take(String digits, Slot slot) {
        int count = 0;
        int size = 0;
        for (Waiting waiting : slot.waiting) {
            size += waiting.message.length();
            if (count == MAX_REQUEST_WRITES || (count > 0 && size > MAX_REQUEST_CHARACTERS)) {
                break;
            }
            count++;
        }
        List<Waiting> batch = slot.waiting.subList(0, count);
        slot.waiting = new ArrayList<>(slot.waiting.subList(count, slot.waiting.size()));
        if (count == 0) {
            slots.remove(digits); // idle, and not held: nothing needs to be remembered
        }
        return batch;
    }

    private void hold(String digits, Slot slot, List<Waiting> batch, Throwable failure) {
        List<Waiting> behind;
        synchronized (this) {
            behind = slot.waiting;
            slot.waiting = new ArrayList<>();
            slot.failure = failure;
            slot.sending = false;
        }
        batch.forEach(waiting -> waiting.id.completeExceptionally(failure));
        behind.forEach(waiting -> waiting.id.completeExceptionally(new SlotHeldException(digits, failure)));
    }

    /**
     * The message ids of the writes, in their order. Failed slots are resumed and their writes sent again, in order, up to so many
     * times. Throws the failure that stays, or at once one that another try doesn't change.
     */
    public List<String> publishAll(List<Write> writes, int attempts, Consumer<String> report)
            throws IOException, InterruptedException {
        String[] ids = new String[writes.size()];
        for (int attempt = 1; ; attempt++) {
            Throwable failure = attempt(writes, ids);
            if (failure == null) {
                return Arrays.asList(ids);
            }
            if (!Topic.isTransient(failure) || attempt == attempts) {
                throw new IOException(failure.toString(), failure);
            }
            Set<String> held = new LinkedHashSet<>();
            int left = 0;
            for (int index = 0; index < ids.length; index++) {
                if (ids[index] == null) {
                    held.add(slotOf.apply(writes.get(index).key()));
                    left++;
                }
            }
            report.accept(held.size() + " slots are held with " + left + " writes, and will be resumed: " + failure);
            Thread.sleep(Topic.backoff(attempt).toMillis());
            held.forEach(this::resume);
        }
    }

    /** Publishes the writes that have no id yet and waits for all of them. Returns a failure, best a lasting one, or null. */
    private Throwable attempt(List<Write> writes, String[] ids) {
        Map<Integer, CompletableFuture<String>> futures = new HashMap<>();
        for (int index = 0; index < ids.length; index++) {
            if (ids[index] == null) {
                futures.put(index, publish(writes.get(index)));
            }
        }
        Throwable worst = null;
        for (var entry : futures.entrySet()) {
            try {
                ids[entry.getKey()] = entry.getValue().join();
            } catch (CompletionException failure) {
                Throwable cause = failure.getCause();
                if (worst == null || !Topic.isTransient(cause)) {
                    worst = cause;
                }
            }
        }
        return worst;
    }

    @Override
    public void close() {
        threads.shutdown();
    }
}
