package producer;

import java.nio.ByteBuffer;
import java.security.SecureRandom;
import java.time.Instant;
import java.util.UUID;

/** Made once and sent as often as it takes: its key, its time and the text of its body stay the same. */
public record Write(String type, String operation, String key, String body, String idempotencyKey, Instant timestamp) {
    private static final SecureRandom RANDOM = new SecureRandom();

    /** A write with a UUIDv7 as its idempotency key. */
    public Write(String type, String operation, String key, String body) {
        this(type, operation, key, body, uuidV7().toString(), Instant.now());
    }

    /** Time first (RFC 9562), so that the rows of new writes lie together in the inbox's index. */
    static UUID uuidV7() {
        byte[] bytes = new byte[16];
        RANDOM.nextBytes(bytes);
        ByteBuffer buffer = ByteBuffer.wrap(bytes);
        long high = System.currentTimeMillis() << 16 | 0x7000 | buffer.getLong() & 0xfff;
        long low = buffer.getLong() & 0x3fffffffffffffffL | 0x8000000000000000L;
        return new UUID(high, low);
    }
}
