"""A `gcloud` for tests: keeps resources as JSON in $FAKE_GCLOUD, and writes each call that changes something to its log.

It knows the commands and flags that the real one documents, and fails at any other.
"""

import json
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_GCLOUD"])
STATE = FOLDER / "state.json"
SUBSCRIPTION = {"--ack-deadline", "--message-retention-duration", "--expiration-period", "--min-retry-delay",
                "--max-retry-delay", "--dead-letter-topic", "--max-delivery-attempts", "--push-endpoint",
                "--push-auth-service-account", "--push-auth-token-audience", "--push-no-wrapper",
                "--push-no-wrapper-write-metadata", "--retain-acked-messages", "--no-retain-acked-messages"}  # fmt: skip
TOPIC = {"--topic-encryption-key", "--message-storage-policy-allowed-regions",
         "--message-storage-policy-enforce-in-transit"}  # fmt: skip
JOB = {"--location", "--schedule", "--time-zone", "--topic", "--message-body", "--description"}
POLICY = {"--flatten", "--format"}
GRANT = {"--role", "--member"}
KNOWN = {
    "pubsub topics describe": {"--format"},
    "pubsub topics create": TOPIC | {"--labels"},
    "pubsub topics update": TOPIC,
    "pubsub topics get-iam-policy": POLICY,
    "pubsub topics add-iam-policy-binding": GRANT,
    "pubsub subscriptions describe": {"--format"},
    "pubsub subscriptions create": SUBSCRIPTION
    | {"--topic", "--enable-message-ordering", "--labels", "--message-filter"},
    "pubsub subscriptions update": SUBSCRIPTION
    | {"--clear-retry-policy", "--clear-dead-letter-policy", "--clear-push-no-wrapper-config"},
    "pubsub subscriptions get-iam-policy": POLICY,
    "pubsub subscriptions add-iam-policy-binding": GRANT,
    "iam service-accounts describe": {"--format"},
    "iam service-accounts create": {"--display-name"},
    "iam service-accounts update": {"--display-name"},
    "iam service-accounts get-iam-policy": POLICY,
    "iam service-accounts add-iam-policy-binding": GRANT | {"--condition"},
    "redis instances describe": {"--region", "--format"},
    "redis instances create": {
        "--region",
        "--tier",
        "--size",
        "--redis-version",
        "--transit-encryption-mode",
        "--connect-mode",
        "--enable-auth",
        "--network",
        "--labels",
    },
    "memorystore instances describe": {"--location", "--format"},
    "memorystore instances create": {
        "--location",
        "--mode",
        "--shard-count",
        "--replica-count",
        "--node-type",
        "--engine-version",
        "--transit-encryption-mode",
        "--authorization-mode",
        "--deletion-protection-enabled",
        "--endpoints",
        "--labels",
    },
    "sql instances describe": {"--format"},
    "sql instances create": {
        "--database-version",
        "--master-instance-name",
        "--region",
        "--tier",
        "--edition",
        "--availability-type",
        "--deletion-protection",
        "--storage-auto-increase",
        "--storage-size",
        "--backup-start-time",
        "--retained-backups-count",
        "--enable-bin-log",
        "--enable-point-in-time-recovery",
        "--database-flags",
        "--assign-ip",
        "--no-assign-ip",
        "--network",
        "--enable-private-service-connect",
        "--allowed-psc-projects",
    },
    "sql databases describe": {"--instance", "--format"},
    "sql databases create": {"--instance"},
    "sql users list": {"--instance", "--format"},
    "sql users create": {"--instance", "--type"},
    "kms keys get-iam-policy": POLICY,
    "kms keys add-iam-policy-binding": GRANT,
    "projects get-iam-policy": POLICY,
    "projects add-iam-policy-binding": GRANT | {"--condition"},
    "scheduler jobs describe": {"--location", "--format"},
    "scheduler jobs create pubsub": JOB | {"--attributes"},
    "scheduler jobs update pubsub": JOB | {"--update-attributes"},
    "logging metrics describe": {"--format"},
    "logging metrics create": {"--config-from-file"},
    "logging metrics update": {"--config-from-file"},
    "monitoring policies list": {"--filter", "--format"},
    "monitoring policies create": {"--policy-from-file"},
    "monitoring policies update": {"--policy-from-file"},
    "monitoring dashboards describe": {"--format"},
    "monitoring dashboards create": {"--config-from-file"},
    "monitoring dashboards update": {"--config-from-file"},
}
UNNAMED = ("list", "monitoring policies create", "monitoring dashboards create")


def fail(message):
    sys.exit(f"ERROR: (fake gcloud) {message}")


def parse(arguments):
    words = [word for word in arguments if not word.startswith("--")]
    flags = dict((*flag.split("=", 1), "")[:2] for flag in arguments if flag.startswith("--"))
    unnamed = " ".join(words).endswith(UNNAMED)
    command, name = (" ".join(words), "") if unnamed else (" ".join(words[:-1]), words[-1])
    if command not in KNOWN:
        fail(f"no such command: {command}")
    if unknown := set(flags) - KNOWN[command] - {"--project"}:
        fail(f"{command}: unrecognized arguments: {unknown}")
    return command, name, flags


def mapping(text):
    delimiter = ","
    if text.startswith("^"):
        delimiter, text = text[1:].split("^", 1)
    return dict(pair.split("=", 1) for pair in text.split(delimiter))


def described(command, there):
    match command:
        case "sql databases describe":
            return there["name"]
        case "pubsub topics describe":
            flags = there["flags"]
            regions = flags.get("--message-storage-policy-allowed-regions", "").replace(",", ";")
            in_transit = "True" if "--message-storage-policy-enforce-in-transit" in flags else ""
            return "|".join((flags.get("--topic-encryption-key", ""), regions, in_transit))
        case "redis instances describe":
            flags = there["flags"]
            tier = {"standard": "STANDARD_HA", "basic": "BASIC"}[flags["--tier"]]
            upper = (flags[name].upper().replace("-", "_") for name in ("--redis-version", "--transit-encryption-mode"))
            connect = flags["--connect-mode"].upper().replace("-", "_")
            return "|".join((tier, flags["--size"], *upper, "True" if "--enable-auth" in flags else "", connect))
        case "memorystore instances describe":
            flags = there["flags"]
            shown = lambda name: flags[name].upper().replace("-", "_")  # noqa: E731
            replicas = "" if flags["--replica-count"] == "0" else flags["--replica-count"]
            rest = ("--node-type", "--engine-version", "--transit-encryption-mode", "--authorization-mode")
            return "|".join((shown("--mode"), flags["--shard-count"], replicas, *map(shown, rest)))
        case "sql instances describe":
            flags = there["flags"]
            return "|".join((
                flags.get("--database-version", "POSTGRES_17"), flags["--region"], flags["--tier"],
                flags["--edition"].upper().replace("-", "_"), flags["--availability-type"].upper(),
            ))  # fmt: skip
        case "pubsub subscriptions describe":
            flags = there["flags"]
            never = "" if flags["--expiration-period"] == "never" else flags["--expiration-period"]
            return "|".join((
                flags["--topic"], str("--enable-message-ordering" in flags), flags["--ack-deadline"],
                flags["--message-retention-duration"], "True" if "--retain-acked-messages" in flags else "", never,
                flags.get("--min-retry-delay", ""),
                flags.get("--max-retry-delay", ""), flags.get("--dead-letter-topic", ""),
                flags.get("--max-delivery-attempts", ""), flags.get("--push-endpoint", ""),
                flags.get("--push-auth-service-account", ""), flags.get("--push-auth-token-audience", ""),
                "True" if "--push-no-wrapper-write-metadata" in flags else "", flags.get("--message-filter", ""),
            ))  # fmt: skip
        case "iam service-accounts describe":
            return there["flags"]["--display-name"]
        case _:
            flags = there["flags"]
            return "|".join(flags[name] for name in ("--schedule", "--time-zone", "--topic", "--description"))


def change(command, there, flags):
    """The state of a resource after a create or an update."""
    if "create" in command.split():
        return flags
    after = {**there["flags"], **flags}
    cleared = {
        "--clear-retry-policy": ("--min-retry-delay", "--max-retry-delay"),
        "--clear-dead-letter-policy": ("--dead-letter-topic", "--max-delivery-attempts"),
        "--clear-push-no-wrapper-config": ("--push-no-wrapper", "--push-no-wrapper-write-metadata"),
    }
    if "--message-storage-policy-allowed-regions" in flags:  # the policy is replaced whole
        after.pop("--message-storage-policy-enforce-in-transit", None)
        after |= flags
    if not after.get("--push-endpoint"):  # the subscription is pulled from then on, and signs nothing
        after = {name: value for name, value in after.items() if not name.startswith("--push-")}
    if "--no-retain-acked-messages" in flags:
        after.pop("--retain-acked-messages", None)
    for flag, gone in cleared.items():
        if flag in flags:
            after = {name: value for name, value in after.items() if name not in (*gone, flag)}
    return after


def of_files(command, name, flags, state):
    """Log-based metrics, alert policies and dashboards, whose configuration comes as a file: here always on stdin."""
    kind, verb = command.rsplit(" ", 1)
    if verb == "list":
        title = flags["--filter"].removeprefix('displayName="').removesuffix('"')
        made = [item for key, item in state.items() if key.startswith(kind) and item["displayName"] == title]
        print("\n".join(f"{item['name']}|{item['userLabels']['checksum']}" for item in made))
        return
    there = state.get(f"{kind} {name}")
    if verb != "create" and there is None:
        fail(f"NOT_FOUND: {kind} {name}")
    if verb == "describe":
        print(there["description"] if kind == "logging metrics" else f"{there['etag']}|{there['labels']['checksum']}")
        return
    if set(flags.values()) & {"-"} != {"-"}:
        fail("no file but stdin is there")
    config = json.load(sys.stdin)
    if kind == "monitoring policies":
        name = name or f"projects/{flags['--project']}/alertPolicies/{len(state)}"
        config["name"] = name
    if kind == "monitoring dashboards":
        name = config["name"].rpartition("/")[2]
        if verb == "update" and config["etag"] != there["etag"]:
            fail("ABORTED: the dashboard has another etag")
        config["etag"] = f"e{len((FOLDER / 'log').read_text())}"
    if verb == "create" and f"{kind} {name}" in state:
        fail(f"{kind} {name} already exists")
    with (FOLDER / "log").open("a") as log:
        log.write(json.dumps(sys.argv[1:]) + "\n")
    state[f"{kind} {name}"] = config
    STATE.write_text(json.dumps(state))


def main():
    command, name, flags = parse(sys.argv[1:])
    state = json.loads(STATE.read_text()) if STATE.exists() else {}
    if command.startswith(("logging ", "monitoring ")):
        of_files(command, name, flags, state)
        return
    kind = " ".join(command.split()[:2]) if not command.startswith("projects ") else "projects"
    if command == "iam service-accounts create":
        name = f"{name}@{flags['--project']}.iam.gserviceaccount.com"
    yours = kind in ("projects", "kms keys")
    there = state.setdefault(f"{kind} {name}", {"policy": []}) if yours else state.get(f"{kind} {name}")
    if command.endswith("list"):
        print("\n".join(item["name"] for key, item in state.items() if key.startswith(kind)))
        return
    if "create" in command.split():
        if there:
            fail(f"{kind} {name} already exists")
    elif there is None:
        fail(f"NOT_FOUND: {kind} {name}")
    if command.endswith("describe"):
        print(described(command, there))
        return
    if command.endswith("get-iam-policy"):
        print("\n".join(grant if grant.count("|") > 1 else f"{grant}|" for grant in there["policy"]))
        return
    with (FOLDER / "log").open("a") as log:
        log.write(json.dumps(sys.argv[1:]) + "\n")
    if command.endswith("add-iam-policy-binding"):
        condition = mapping(flags["--condition"]) if "=" in flags.get("--condition", "") else {}
        there["policy"].append("|".join((flags["--role"], flags["--member"], *filter(None, [condition.get("title")]))))
    else:
        for flag in ("--attributes", "--update-attributes", "--labels"):
            if flag in flags:
                flags[flag.replace("update-", "")] = mapping(flags.pop(flag))
        new = {"name": name, "policy": [], **(there or {})}
        new["flags"] = change(command, there, flags)
        state[f"{kind} {name}"] = new
    STATE.write_text(json.dumps(state))


main()
