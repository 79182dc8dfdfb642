package producer;

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.Supplier;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;

/** The REST method {@code projects.topics.publish} of one topic. */
public final class Topic {
    private static final long FIRST_PAUSE_MS = 100;
    private static final long MAX_PAUSE_MS = 5_000;
    private static final Pattern ID = Pattern.compile("\"([^\"]+)\"");

    private final HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private final URI uri;
    private final Supplier<String> token;
    private final Duration giveUp;

    /**
     * {@code url} is https://pubsub.googleapis.com/v1/projects/P/topics/T, {@code token} gives an access token, empty for an
     * emulator, and {@code giveUp} is how long a request is retried.
     */
    public Topic(String url, Supplier<String> token, Duration giveUp) {
        this.uri = URI.create(url + ":publish");
        this.token = token;
        this.giveUp = giveUp;
    }

    /**
     * Sends the messages of one ordering key in one request and returns their ids. It sends the same bytes again while failures
     * are transient, for as long as {@code giveUp}.
     */
    List<String> publish(List<String> messages) throws IOException, InterruptedException {
        String body = "{\"messages\": [" + String.join(", ", messages) + "]}";
        long end = System.nanoTime() + giveUp.toNanos();
        for (int failures = 1; ; failures++) {
            IOException failure;
            try {
                List<String> ids = post(body, Duration.ofNanos(Math.max(1_000_000, end - System.nanoTime())));
                if (ids.size() == messages.size()) {
                    return ids;
                }
                failure = new IOException("Pub/Sub gave " + ids.size() + " ids for " + messages.size() + " messages");
            } catch (IOException error) {
                failure = error;
            }
            Duration pause = backoff(failures);
            if (!isTransient(failure) || System.nanoTime() + pause.toNanos() > end) {
                throw failure;
            }
            Thread.sleep(pause.toMillis());
        }
    }

    private List<String> post(String body, Duration timeout) throws IOException, InterruptedException {
        HttpRequest.Builder request = HttpRequest.newBuilder(uri)
            .timeout(timeout)
            .header("Content-Type", "application/json")
            .POST(BodyPublishers.ofString(body));
        String bearer = token.get();
        if (!bearer.isEmpty()) {
            request.header("Authorization", "Bearer " + bearer);
        }
        var response = client.send(request.build(), BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            throw new RefusedException(response.statusCode(), response.body());
        }
        String ids = response.body().substring(response.body().indexOf('[') + 1);
        return ID.matcher(ids).results().map((MatchResult id) -> id.group(1)).toList();
    }

    static boolean isTransient(Throwable failure) {
        return !(failure instanceof RefusedException refused) || refused.isTransient();
    }

    static Duration backoff(int failures) {
        long pause = Math.min(FIRST_PAUSE_MS << Math.min(failures - 1, 10), MAX_PAUSE_MS);
        return Duration.ofMillis(pause / 2 + ThreadLocalRandom.current().nextLong(pause / 2));
    }

    /** A write as a message of the request, in JSON: base64 holds the body, and its slot is the ordering key. */
    static String message(Write write, String digits) {
        List<String> attributes = new ArrayList<>();
        attributes.add(attribute("slot", digits));
        attributes.add(attribute("partition_key", write.key()));
        attributes.add(attribute("message_type", write.type()));
        attributes.add(attribute("operation", write.operation()));
        attributes.add(attribute("timestamp", write.timestamp().toString()));
        attributes.add(attribute("idempotency_key", write.idempotencyKey()));
        String data = Base64.getEncoder().encodeToString(write.body().getBytes(StandardCharsets.UTF_8));
        return "{\"data\": \"" + data + "\", \"orderingKey\": \"" + digits + "\", \"attributes\": {"
            + String.join(", ", attributes) + "}}";
    }

    private static String attribute(String name, String value) {
        StringBuilder text = new StringBuilder("\"").append(name).append("\": \"");
        for (char character : value.toCharArray()) {
            if (character == '"' || character == '\\') {
                text.append('\\').append(character);
            } else if (character < ' ') {
                text.append(String.format("\\u%04x", (int) character));
            } else {
                text.append(character);
            }
        }
        return text.append('"').toString();
    }
}
