"""The shard's database: sessions, what differs between databases, and what their errors mean."""
