"""The parts of `shards.yaml` as frozen models, one module a theme. `shardctl.spec` puts them together."""
