"""The parts of `shards.yaml` as frozen models, one module a theme. `shardctl.fleet.spec` puts them together."""
