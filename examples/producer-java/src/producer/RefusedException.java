package producer;

import java.io.IOException;

/** An answer other than 200. */
public final class RefusedException extends IOException {
    private static final long serialVersionUID = 1;

    final int status;

    RefusedException(int status, String body) {
        super("HTTP " + status + ": " + body);
        this.status = status;
    }

    /** Whether another try may succeed. A failure without an answer is always transient. */
    boolean isTransient() {
        return status == 409 || status == 429 || status == 499 || status >= 500;
    }
}
