from shardctl.status.metricspage import read_metrics


def test_metrics_are_read_with_label_values_summed_up():
    text = """# HELP shardctl_messages_applied_total Writes.
# TYPE shardctl_messages_applied_total counter
shardctl_messages_applied_total 12.0
shardctl_messages_applied_created 1.7e+09
shardctl_messages_dead_lettered_total{reason="bad_json"} 2.0
shardctl_messages_dead_lettered_total{reason="no_row"} 3.0
shardctl_batch_rows_bucket{le="1.0"} 4.0
shardctl_batch_rows_sum 40.0
"""
    assert read_metrics(text) == {
        "shardctl_messages_applied_total": 12.0,
        "shardctl_messages_dead_lettered_total": 5.0,
        "shardctl_batch_rows_sum": 40.0,
    }
