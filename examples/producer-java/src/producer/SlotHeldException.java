package producer;

/** The write was not sent, since an earlier one of its slot failed. */
public final class SlotHeldException extends Exception {
    private static final long serialVersionUID = 1;

    SlotHeldException(String slot, Throwable cause) {
        super("slot " + slot + ": not sent: an earlier write of the slot failed. Resume the slot, then retry in order.", cause);
    }
}
