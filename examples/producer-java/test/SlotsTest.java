import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.regex.Pattern;
import producer.Slots;

/** The published test vectors, whose file is the argument. It has a vector a line. */
public final class SlotsTest {
    private static final Pattern VECTOR = Pattern.compile(
        "\\{\"key\": \"([^\"\\\\]*)\", \"slot_bits\": (\\d+), (\"modulo\": (\\d+), )?\"slot\": \\d+, \"digits\": \"([01]+)\"}");

    private SlotsTest() {}

    public static void main(String[] arguments) throws IOException {
        int keys = 0;
        int moduloKeys = 0;
        for (String line : Files.readAllLines(Path.of(arguments[0]))) {
            var vector = VECTOR.matcher(line);
            if (!vector.find()) {
                continue;
            }
            int slotBits = Integer.parseInt(vector.group(2));
            String digits;
            if (vector.group(4) == null) {
                keys += 1;
                digits = Slots.slotDigits(vector.group(1), slotBits);
            } else {
                moduloKeys += 1;
                digits = Slots.moduloSlotDigits(Long.parseLong(vector.group(1)), Integer.parseInt(vector.group(4)), slotBits);
            }
            if (!digits.equals(vector.group(5))) {
                throw new AssertionError(digits + " instead of " + line);
            }
        }
        if (keys == 0 || moduloKeys == 0) {
            throw new AssertionError("there are no vectors in " + arguments[0]);
        }
        System.out.println(keys + " keys and " + moduloKeys + " keys with a modulo have the published slots");
    }
}
