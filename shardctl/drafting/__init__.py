"""`message_types` of `shards.yaml`, drafted from the tables that a database has."""
