import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import producer.Producer;
import producer.SlotHeldException;
import producer.Topic;
import producer.Write;

/** Nothing overtakes a failed write, and the same bytes are sent until they are taken. */
public final class ProducerTest {
    private static final Pattern DATA = Pattern.compile("\"data\": \"([^\"]*)\"");

    private final BlockingQueue<List<String>> requests = new LinkedBlockingQueue<>();
    private final BlockingQueue<Integer> answers = new LinkedBlockingQueue<>();
    private final List<String> received = new ArrayList<>();

    public static void main(String[] arguments) throws Exception {
        new ProducerTest().run();
    }

    private void run() throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        var threads = Executors.newCachedThreadPool();
        server.setExecutor(threads);
        server.createContext("/", this::answer);
        server.start();
        String url = "http://127.0.0.1:" + server.getAddress().getPort() + "/v1/projects/p/topics/t";
        try (Producer producer = new Producer(new Topic(url, () -> "", Duration.ofMinutes(1)), key -> key)) {
            nothingOvertakesAFailedWrite(producer);
            theSameBytesAreSentUntilTheyAreTaken(producer);
        } finally {
            server.stop(0);
            threads.shutdownNow();
        }
        System.out.println("nothing overtakes a failed write");
    }

    private void nothingOvertakesAFailedWrite(Producer producer) throws Exception {
        var first = producer.publish(write("a", "1"));
        receive();
        var second = producer.publish(write("a", "2"));
        try {
            producer.resume("a");
            throw new AssertionError("a slot with a request in flight was resumed");
        } catch (IllegalStateException expected) {
            answers.add(403);
        }
        check(!(failure(first) instanceof SlotHeldException), "the failed write has the failure itself");
        check(failure(second) instanceof SlotHeldException, "so fails what waits behind it");
        check(failure(producer.publish(write("a", "3"))) instanceof SlotHeldException, "and what comes later");
        var other = producer.publish(write("b", "4"));
        answers.add(200);
        check(other.get().equals("id of 4"), "other slots go on");
        receive();
        producer.resume("a");
        List<CompletableFuture<String>> again = new ArrayList<>();
        for (String body : List.of("1", "2", "3")) {
            again.add(producer.publish(write("a", body)));
            answers.add(200); // at most a request each
        }
        for (int index = 0; index < again.size(); index++) {
            check(again.get(index).get().equals("id of " + (index + 1)), "each write has its own id");
        }
        while (!requests.isEmpty()) {
            receive();
        }
        check(received.equals(List.of("1", "4", "1", "2", "3")), "the topic received " + received);
        answers.clear();
    }

    private void theSameBytesAreSentUntilTheyAreTaken(Producer producer) throws Exception {
        answers.addAll(List.of(503, 429, 200));
        check(producer.publish(write("c", "\u00e9")).get().equals("id of \u00e9"), "a transient failure is retried");
        check(requests.size() == 3 && requests.stream().distinct().count() == 1, "the same bytes were sent again");
    }

    private void receive() throws InterruptedException {
        received.addAll(requests.take());
    }

    private void answer(HttpExchange exchange) throws IOException {
        String text = new String(exchange.getRequestBody().readAllBytes(), StandardCharsets.UTF_8);
        List<String> bodies = DATA.matcher(text).results()
            .map(data -> new String(Base64.getDecoder().decode(data.group(1)), StandardCharsets.UTF_8)).toList();
        requests.add(bodies);
        try {
            int status = answers.take();
            String ids = String.join(", ", bodies.stream().map(body -> "\"id of " + body + "\"").toList());
            byte[] answer = ("{\"messageIds\": [" + ids + "]}").getBytes(StandardCharsets.UTF_8);
            exchange.sendResponseHeaders(status, answer.length);
            exchange.getResponseBody().write(answer);
        } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
        } finally {
            exchange.close();
        }
    }

    private static Write write(String key, String body) {
        return new Write("customer", "upsert", key, body);
    }

    private static Throwable failure(CompletableFuture<String> future) throws Exception {
        try {
            throw new AssertionError("published as " + future.get(1, TimeUnit.MINUTES));
        } catch (ExecutionException failure) {
            return failure.getCause();
        }
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
