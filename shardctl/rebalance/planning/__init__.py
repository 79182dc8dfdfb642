"""Which slots to move for what is asked, and the next `shards.yaml`. Pure, but for the measured rates."""
