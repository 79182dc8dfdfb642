package producer;

import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/**
 * Publishes the writes on stdin. Each line holds, between tabs, message type, operation, key and body, and may hold an idempotency
 * key. Prints each write's message id and idempotency key, in the order of the lines.
 */
public final class Publish {
    private static final String USAGE = "Publish projects/PROJECT/topics/TOPIC [SLOT_BITS [GIVE_UP_SECONDS]] < WRITES";
    private static final int MAX_ATTEMPTS = 20;

    private Publish() {}

    public static void main(String[] arguments) throws IOException, InterruptedException {
        String name = arguments.length > 0 ? arguments[0] : "";
        int slotBits = (int) number(arguments, 1, 10);
        double giveUpSeconds = number(arguments, 2, 60);
        if (!name.matches("projects/[^/]+/topics/[^/]+") || slotBits < 1 || slotBits > 16 || !(giveUpSeconds > 0)) {
            end(2, USAGE);
        }
        List<Write> writes = read(new String(System.in.readAllBytes(), StandardCharsets.UTF_8));
        Map<String, String> environment = System.getenv();
        Topic topic = new Topic(
            // Message ordering needs all producers of a slot to publish to one region: name its endpoint.
            environment.getOrDefault("PUBSUB_URL", "https://pubsub.googleapis.com") + "/v1/" + name,
            () -> environment.getOrDefault("PUBSUB_TOKEN", ""),
            Duration.ofMillis((long) (giveUpSeconds * 1_000)));
        try (Producer producer = new Producer(topic, key -> Slots.slotDigits(key, slotBits))) {
            List<String> ids = producer.publishAll(writes, MAX_ATTEMPTS, System.err::println);
            PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
            for (int index = 0; index < ids.size(); index++) {
                out.print(ids.get(index) + "\t" + writes.get(index).idempotencyKey() + "\n");
            }
            out.flush();
        } catch (IOException failure) {
            end(1, "not every write was published: " + failure.getMessage());
        }
    }

    private static List<Write> read(String text) {
        List<Write> writes = new ArrayList<>();
        String[] lines = text.split("\n");
        for (int index = 0; index < lines.length; index++) {
            String[] fields = lines[index].split("\t", -1);
            if (lines[index].isEmpty()) {
                continue;
            }
            if (fields.length != 4 && fields.length != 5) {
                end(2, "line " + (index + 1) + ": type, operation, key and body are needed, with tabs between them");
            }
            writes.add(
                fields.length == 4
                    ? new Write(fields[0], fields[1], fields[2], fields[3])
                    : new Write(fields[0], fields[1], fields[2], fields[3], fields[4], Instant.now()));
        }
        return writes;
    }

    private static double number(String[] arguments, int index, double absent) {
        try {
            return index < arguments.length ? Double.parseDouble(arguments[index]) : absent;
        } catch (NumberFormatException error) {
            return Double.NaN;
        }
    }

    private static void end(int code, String text) {
        System.err.println(text);
        System.exit(code);
    }
}
