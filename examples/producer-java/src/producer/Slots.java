package producer;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** The slot of a key: the ordering key of a write, and its attribute {@code slot}. */
public final class Slots {
    private Slots() {}

    /** {@code slotBits} is {@code slot_bits} in shards.yaml. */
    public static String slotDigits(String key, int slotBits) {
        byte[] sum = sha256(key);
        int slot = (((sum[0] & 0xff) << 8) | (sum[1] & 0xff)) >> (16 - slotBits);
        return digits(slot, slotBits);
    }

    /** The same for a fleet with {@code routing: {modulo: N}}, whose keys are whole numbers in plain decimal digits. */
    public static String moduloSlotDigits(long key, int modulo, int slotBits) {
        long grains = 4L << (32 - Integer.numberOfLeadingZeros(modulo - 1));
        long piece = (1L << slotBits) / grains;
        long remainder = key % modulo;
        long first = remainder * grains / modulo * piece;
        long end = (remainder + 1) * grains / modulo * piece;
        long h = ByteBuffer.wrap(sha256(Long.toString(key))).getInt() & 0xffffffffL;
        return digits(first + (h * (end - first) >> 32), slotBits);
    }

    private static String digits(long slot, int slotBits) {
        String digits = Long.toBinaryString(slot);
        return "0".repeat(slotBits - digits.length()) + digits;
    }

    private static byte[] sha256(String text) {
        try {
            return MessageDigest.getInstance("SHA-256").digest(text.getBytes(StandardCharsets.UTF_8));
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException("every Java has SHA-256", error);
        }
    }
}
