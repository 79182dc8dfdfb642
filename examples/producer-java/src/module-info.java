/** Publishes writes to a fleet, in the order of each slot, through a failure. */
module shardctl.producer {
    requires java.net.http;

    exports producer;
}
