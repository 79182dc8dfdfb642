"""The broker's second door: google.pubsub.v1 as REST with JSON, by the rules of `google.api.http`."""
