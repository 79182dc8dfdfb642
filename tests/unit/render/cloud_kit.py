"""A small fleet with everything that Google Cloud holds of one."""

from __future__ import annotations

from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec import Fleet
from shardctl.fleet.yamlfile import parse

FLEET = """
fleet: orders
project: my-project
project_number: "123456789012"
topic:
  kms_key: projects/key-project/locations/europe-west1/keyRings/ring/cryptoKeys/writes
  allowed_regions: [europe-west4, europe-west1]
  enforce_in_transit: true
namespace: writers
image: example.com/consumer:1.0.0
labels: {team: payments}
provisioner: terraform
routing: {slot_bits: 4}
autoscaling: {max: 8}
message_types:
  order: {table: orders, key: order_id, columns: {order_id: text, note: text}}
schedules:
  - name: nightly
    cron: 30 4 * * mon-fri
    time_zone: Europe/Berlin
    region: europe-west1
    type: order
    body: {order_id: sweep, note: "it's ${time} %{if} \\"now\\""}
databases: [postgresql, mysql]
redis: {memorystore: {region: europe-west1}}
cloud_sql:
  create: {version: POSTGRES_17, tier: db-custom-2-8192, replicas: [{name: replica, region: europe-west4}]}
shards:
  - {name: s0, slots: 0-7}
  - {name: s1, slots: 8-15, generation: 3, database: {cloud_sql: {instance: "data-project:europe-west1:orders", database: db}}}
"""


def fleet_of(text: str = FLEET) -> Fleet:
    return fleet_from(parse(text))
